// Where the nodes of a swarm stand. A node keeps its place while others come and go.
//
// The origins are in the middle. Around them is an island for each zone; on it the hosts lie like the
// seeds of a sunflower, so that any number of them is evenly spread. A few hosts stand in a circle.

/** Up to so many hosts of one zone stand in a circle. */
const CIRCLE = 28;
const GOLDEN = Math.PI * (3 - Math.sqrt(5));

export class Layout {
  #islands = new Map();
  #places = new Map();
  #packed = '';

  /** Positions of the nodes of a graph in their order, with the radius of all of it; 1 is a node's room. */
  place(graph) {
    const origins = graph.ids.filter((_, node) => graph.origins[node] === 1);
    const core = origins.length > 1 ? 1.4 + origins.length / Math.PI : 1.4;
    this.#settle(graph);
    const radius = this.#pack(core);
    const xs = new Float32Array(graph.ids.length);
    const ys = new Float32Array(graph.ids.length);
    graph.ids.forEach((id, node) => {
      [xs[node], ys[node]] = graph.origins[node] === 1 ? ring(origins.indexOf(id), origins.length, core - 1.4) : this.#spot(id, core);
    });
    return { xs, ys, radius, circle: this.#isCircle() };
  }

  /** Takes in who came, and frees the places of those who went. */
  #settle(graph) {
    const now = new Map();
    graph.ids.forEach((id, node) => {
      if (graph.origins[node] !== 1) now.set(id, graph.zone_names[graph.zones[node]] ?? '');
    });
    for (const [id, place] of this.#places) {
      if (now.get(id) === place.zone) continue;
      this.#islands.get(place.zone).free.push(place.slot);
      this.#places.delete(id);
    }
    for (const [id, zone] of now) {
      if (this.#places.has(id)) continue;
      if (!this.#islands.has(zone)) this.#islands.set(zone, { free: [], next: 0, x: 0, y: 0 });
      const island = this.#islands.get(zone);
      island.free.sort((one, other) => other - one);
      const slot = island.free.pop() ?? island.next++;
      this.#places.set(id, { zone, slot });
    }
    const used = new Set([...this.#places.values()].map((it) => it.zone));
    for (const zone of this.#islands.keys()) if (!used.has(zone)) this.#islands.delete(zone);
  }

  #isCircle() {
    return this.#islands.size === 1 && [...this.#islands.values()][0].next <= CIRCLE;
  }

  /** Puts the islands round the core, the first by name nearest; only when their sizes changed. */
  #pack(core) {
    const sized = [...this.#islands].sort(([one], [other]) => (one < other ? -1 : 1));
    for (const [, island] of sized) island.radius = 0.62 * Math.sqrt(roomy(island.next)) + 0.6;
    if (sized.length === 1) {
      const [[, island]] = sized;
      [island.x, island.y] = [0, 0];
      this.#packed = '';
      if (this.#isCircle()) return Math.max(3.2, island.next * 0.42) + 0.7;
      return 0.62 * Math.sqrt(island.next + inner(core)) + 1.2;
    }
    const sizes = `${core}:${sized.map(([zone, island]) => `${zone}=${island.radius}`).join()}`;
    if (sizes !== this.#packed) {
      this.#packed = sizes;
      const put = [{ x: 0, y: 0, radius: core }];
      for (const [, island] of sized) {
        Object.assign(island, beside(put, island.radius));
        put.push(island);
      }
    }
    return sized.reduce((most, [, it]) => Math.max(most, Math.hypot(it.x, it.y) + it.radius), core) + 0.5;
  }

  #spot(id, core) {
    const { zone, slot } = this.#places.get(id);
    const island = this.#islands.get(zone);
    if (this.#isCircle()) return ring(slot, island.next, Math.max(3.2, island.next * 0.42));
    const skipped = this.#islands.size === 1 ? inner(core) : 0;
    const distance = 0.62 * Math.sqrt(slot + skipped + 0.5);
    const angle = (slot + skipped) * GOLDEN;
    return [island.x + distance * Math.cos(angle), island.y + distance * Math.sin(angle)];
  }
}

/** How many seeds' places the core takes. */
const inner = (core) => Math.ceil((core / 0.62) ** 2);

/** Room for more, in steps: an island does not move for every host that comes. */
function roomy(count) {
  let room = 12;
  while (room < count) room = Math.ceil(room * 1.35);
  return room;
}

function ring(place, of, radius) {
  const angle = (place / Math.max(of, 1)) * 2 * Math.PI - Math.PI / 2;
  return of === 1 && radius < 1 ? [0, 0] : [radius * Math.cos(angle), radius * Math.sin(angle)];
}

/** The spot nearest to the middle where a disc of this radius touches none of `put`. */
function beside(put, radius) {
  for (let distance = put[0].radius + radius; ; distance += radius / 4) {
    const steps = Math.max(8, Math.round((2 * Math.PI * distance) / (radius / 2)));
    for (let step = 0; step < steps; step += 1) {
      const angle = (step / steps) * 2 * Math.PI - Math.PI / 2;
      const [x, y] = [distance * Math.cos(angle), distance * Math.sin(angle)];
      if (put.every((it) => Math.hypot(it.x - x, it.y - y) >= it.radius + radius + 0.3)) return { x, y };
    }
  }
}
