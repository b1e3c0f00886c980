// A swarm as it lives: hosts by how much they have, pieces on their way.
//
// What changes once a second (nodes, edges) is painted on layers of its own, a part of it in each frame;
// what moves (pieces) is painted over them. So the time for a frame does not grow with the number of
// hosts, except for copying the layers.

import { colours, fit } from './chart.js';
import { Layout } from './layout.js';
import { el, percent, rate, say } from './parts.js';

/** The most pieces in flight. */
const MOST_PIECES = 900;
/** How many new ones a second at most; with less traffic fewer. */
const MOST_BORN = 700;
/** How long a piece flies, in milliseconds. */
const FLIGHT = 1100;
/** The most edges that are painted, and how many of them in one frame. */
const MOST_EDGES = 6000;
const EDGES_A_FRAME = 400;
/** Up to so many nodes each has its name beside it, and rings instead of dots. */
const NAMED = 40;
const ROUND = 700;
/** Shades of progress. */
const SHADES = 24;

export class SwarmGraph {
  #layout = new Layout();
  #graph = null;
  #spots = { xs: new Float32Array(0), ys: new Float32Array(0), radius: 1 };
  #pieces = [];
  #born = 0;
  #weights = new Float64Array(0);
  #painted = 0;
  #shown = null;
  #frames = { count: 0, painting: 0, worst: 0, between: 0, last: 0 };
  #asked = 0;
  #still = matchMedia('(prefers-reduced-motion: reduce)').matches;

  constructor(onPick) {
    this.canvas = el('canvas', { class: 'graph', role: 'img', 'aria-label': 'The swarm as a graph' });
    this.tip = el('div', { class: 'tip', hidden: true });
    this.counter = el('div', { class: 'frames', title: 'Between two frames, and to paint one' });
    this.node = el('div', { class: 'stage' }, this.canvas, this.tip, this.counter);
    this.edges = document.createElement('canvas');
    this.next = document.createElement('canvas');
    this.nodes = document.createElement('canvas');
    this.canvas.addEventListener('pointermove', (event) => this.#point(event));
    this.canvas.addEventListener('pointerleave', () => (this.tip.hidden = true));
    this.canvas.addEventListener('click', (event) => {
      const node = this.#at(event.offsetX, event.offsetY);
      if (node >= 0) onPick(this.#graph.ids[node], this.#graph.origins[node] === 1);
    });
    this.light = matchMedia('(prefers-color-scheme: dark)');
    this.repaint = () => this.#everythingAnew();
    this.light.addEventListener('change', this.repaint);
    this.watch = new ResizeObserver(this.repaint);
    this.watch.observe(this.canvas);
    this.#asked = requestAnimationFrame((now) => this.#frame(now));
  }

  stop() {
    cancelAnimationFrame(this.#asked);
    this.watch.disconnect();
    this.light.removeEventListener('change', this.repaint);
  }

  /** Whether each host is a disc that fills, not a dot of a colour. */
  isRound = () => (this.#graph?.ids.length ?? 0) <= ROUND;

  /** Takes what the tracker says now. Pieces in flight go on between the nodes that they are between. */
  set(graph) {
    const before = new Map(this.#graph?.ids.map((id, node) => [id, node]));
    const moved = new Map();
    graph.ids.forEach((id, node) => {
      if (before.has(id)) moved.set(before.get(id), node);
    });
    this.#pieces = this.#pieces.filter((it) => moved.has(it.from) && moved.has(it.to));
    for (const piece of this.#pieces) [piece.from, piece.to] = [moved.get(piece.from), moved.get(piece.to)];
    this.#graph = graph;
    this.#spots = this.#layout.place(graph);
    let sum = 0;
    this.#weights = Float64Array.from(graph.edges, ([, , kib]) => (sum += kib));
    const ready = graph.done.filter((it, node) => it >= 1000 && !graph.origins[node]).length;
    const hosts = graph.ids.length - graph.origins.filter((it) => it === 1).length;
    this.canvas.setAttribute('aria-label', `The swarm as a graph: ${ready} of ${hosts} hosts have all of the blob, ${graph.edges.length} connections. The table below has the numbers.`);
    this.#painted = 0;
    this.#paintNodes();
  }

  /** Frames so far, and milliseconds: on average to paint one, the longest, on average between two. */
  times() {
    const { count, painting, worst, between } = this.#frames;
    return { count, painting: painting / Math.max(count, 1), worst, between: between / Math.max(count - 1, 1) };
  }

  #everythingAnew() {
    this.#shown = null;
    this.#painted = 0;
    this.#paintNodes();
  }

  #scale() {
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const { radius } = this.#spots;
    const margin = this.#graph.ids.length <= NAMED ? 30 : 10;
    const unit = (height / 2 - margin) / radius;
    const stretch = Math.max(1, Math.min(1.75, (width / 2 - margin - 40) / (height / 2 - margin)));
    return { unit, stretch, width, height };
  }

  #spot(node, { unit, stretch, width, height }) {
    return [width / 2 + this.#spots.xs[node] * unit * stretch, height / 2 + this.#spots.ys[node] * unit];
  }

  #size(scale) {
    return Math.max(1.6, Math.min(14, scale.unit * 0.44));
  }

  #palette() {
    const colour = colours(this.canvas);
    const stops = ['missing', 'half', 'most'].map((name) => colour(name));
    const mix = (share) => (share < 0.45 ? blend(stops[0], stops[1], share / 0.45) : blend(stops[1], stops[2], (share - 0.45) / 0.55));
    const shades = Array.from({ length: SHADES }, (_, shade) => mix(shade / (SHADES - 1)));
    shades.push(colour('ready'));
    return { colour, shades };
  }

  /** Paints the nodes anew whose shade is another, or all of them when they moved. */
  #paintNodes() {
    if (!this.#graph || this.canvas.clientWidth === 0) return;
    const scale = this.#scale();
    const { colour, shades } = this.#palette();
    const graph = this.#graph;
    const size = this.#size(scale);
    const key = `${scale.width}x${scale.height}:${this.#spots.radius}:${graph.ids.length}:${graph.ids[0]}:${graph.ids.at(-1)}`;
    const isNew = this.#shown?.key !== key;
    const paint = layer(this.nodes, this.canvas, isNew);
    const shaded = graph.done.map((done) => (done >= 1000 ? SHADES : Math.floor((done * SHADES) / 1000)));
    const round = graph.ids.length <= ROUND;
    for (let node = 0; node < graph.ids.length; node += 1) {
      if (!isNew && this.#shown.shaded[node] === shaded[node] && !(round && this.#shown.done[node] !== graph.done[node])) continue;
      const [x, y] = this.#spot(node, scale);
      if (graph.origins[node]) hexagon(paint, x, y, Math.max(size * 1.25, 5), colour('origins'));
      else if (round) pie(paint, x, y, size, graph.done[node], colour);
      else dot(paint, x, y, size, shades[shaded[node]]);
      if (graph.ids.length <= NAMED) this.#label(paint, node, x, y, size, colour);
    }
    this.#shown = { key, shaded, done: graph.done };
  }

  #label(paint, node, x, y, size, colour) {
    const name = this.#graph.names[node] ?? '';
    paint.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    paint.textAlign = 'center';
    paint.textBaseline = 'top';
    const text = name.length > 22 ? `${name.slice(0, 21)}…` : name;
    const wide = paint.measureText('0'.repeat(24)).width;
    paint.clearRect(x - wide / 2, y + size + 3, wide, 16);
    // What passes below the name does not make it hard to read.
    paint.strokeStyle = colour('panel');
    paint.lineWidth = 4;
    paint.lineJoin = 'round';
    paint.strokeText(text, x, y + size + 4);
    paint.fillStyle = colour('text');
    paint.fillText(text, x, y + size + 4);
  }

  /** Paints some more edges on the next layer; when all are there, it takes the place of the last. */
  #paintEdges() {
    const edges = this.#graph.edges;
    const end = Math.min(edges.length, MOST_EDGES);
    if (this.#painted > end) return;
    const scale = this.#scale();
    const paint = layer(this.next, this.canvas, this.#painted === 0);
    const colour = colours(this.canvas);
    const few = Math.min(1, 160 / Math.max(end, 1));
    const until = Math.min(this.#painted + EDGES_A_FRAME, end);
    const fastest = edges.length > 0 ? Math.max(edges[0][2], 1) : 1;
    for (let group = 0; group < 3; group += 1) {
      paint.beginPath();
      for (let place = this.#painted; place < until; place += 1) {
        const [from, to, kib] = edges[place];
        const strength = kib === 0 ? 0 : kib * 3 < fastest ? 1 : 2;
        if (strength !== group) continue;
        const [[x1, y1], [x2, y2]] = [this.#spot(from, scale), this.#spot(to, scale)];
        const [cx, cy] = bend(x1, y1, x2, y2);
        paint.moveTo(x1, y1);
        paint.quadraticCurveTo(cx, cy, x2, y2);
      }
      paint.strokeStyle = group === 0 ? colour('missing') : colour('most');
      paint.globalAlpha = [0.3, 0.22, 0.42][group] * (0.25 + 0.75 * few);
      paint.lineWidth = [0.8, 1, 1.5][group] * (few < 0.5 ? 0.7 : 1);
      paint.stroke();
    }
    this.#painted = until;
    if (until === end) {
      [this.edges, this.next] = [this.next, this.edges];
      this.#painted = end + 1;
    }
  }

  #frame(now) {
    this.#asked = requestAnimationFrame((at) => this.#frame(at));
    if (!this.#graph || this.canvas.clientWidth === 0) return;
    const began = performance.now();
    const { paint, width, height } = fit(this.canvas);
    this.#paintEdges();
    paint.clearRect(0, 0, width, height);
    if (this.edges.width > 0) paint.drawImage(this.edges, 0, 0, width, height);
    if (!this.#still) this.#fly(paint, now);
    if (this.nodes.width > 0) paint.drawImage(this.nodes, 0, 0, width, height);
    this.#count(now, performance.now() - began);
  }

  #count(now, painting) {
    const frames = this.#frames;
    frames.count += 1;
    frames.painting += painting;
    frames.worst = Math.max(frames.worst, painting);
    if (frames.last) frames.between += now - frames.last;
    frames.last = now;
    if (frames.count % 30 !== 0) return;
    const times = this.times();
    say(this.counter, `${times.between.toFixed(0)} ms a frame, ${times.painting.toFixed(1)} ms to paint`);
    this.canvas.dataset.frames = JSON.stringify(times);
  }

  /** Lets pieces go where most flows, in proportion, and paints those on their way. */
  #fly(paint, now) {
    const scale = this.#scale();
    const sum = this.#weights.at(-1) ?? 0;
    const passed = Math.min(now - (this.#frames.last || now), 100);
    // A piece for every 256 KiB, as far as there are no more than can be seen.
    this.#born += sum > 0 ? (Math.min(sum / 256, MOST_BORN) * passed) / 1000 : 0;
    for (; this.#born >= 1; this.#born -= 1) {
      if (this.#pieces.length >= MOST_PIECES) continue;
      const [from, to] = this.#graph.edges[find(this.#weights, Math.random() * sum)];
      this.#pieces.push({ from, to, at: now + Math.random() * passed });
    }
    this.#pieces = this.#pieces.filter((it) => now - it.at < FLIGHT);
    const size = Math.max(1.2, Math.min(3.2, this.#size(scale) * 0.42));
    const colour = colours(this.canvas);
    for (const origin of [0, 1]) {
      paint.beginPath();
      for (const piece of this.#pieces) {
        if (this.#graph.origins[piece.from] !== origin) continue;
        const share = Math.max(0, (now - piece.at) / FLIGHT);
        const [[x1, y1], [x2, y2]] = [this.#spot(piece.from, scale), this.#spot(piece.to, scale)];
        const [cx, cy] = bend(x1, y1, x2, y2);
        const [a, b, c] = [(1 - share) ** 2, 2 * share * (1 - share), share ** 2];
        const [x, y] = [a * x1 + b * cx + c * x2, a * y1 + b * cy + c * y2];
        paint.rect(x - size, y - size, 2 * size, 2 * size);
      }
      paint.fillStyle = origin ? colour('origins') : colour('agents');
      paint.fill();
    }
  }

  #at(x, y) {
    if (!this.#graph) return -1;
    const scale = this.#scale();
    let [best, nearest] = [-1, Math.max(14, this.#size(scale) * 1.4) ** 2];
    for (let node = 0; node < this.#graph.ids.length; node += 1) {
      const [nx, ny] = this.#spot(node, scale);
      const distance = (nx - x) ** 2 + (ny - y) ** 2;
      if (distance < nearest) [best, nearest] = [node, distance];
    }
    return best;
  }

  #point(event) {
    const node = this.#at(event.offsetX, event.offsetY);
    this.tip.hidden = node < 0;
    this.canvas.style.cursor = node < 0 ? '' : 'pointer';
    if (node < 0) return;
    const graph = this.#graph;
    const flow = (end) => 1024 * graph.edges.reduce((sum, edge) => sum + (edge[end] === node ? edge[2] : 0), 0);
    const zone = graph.zone_names[graph.zones[node]];
    const what = graph.origins[node] ? 'origin' : percent(graph.done[node]);
    this.tip.textContent = [graph.names[node] || graph.ids[node], zone, what, `in ${rate(flow(1))}`, `out ${rate(flow(0))}`].filter(Boolean).join(' · ');
    const { width } = this.#scale();
    this.tip.style.left = `${Math.max(4, Math.min(event.offsetX + 14, width - this.tip.offsetWidth - 4))}px`;
    this.tip.style.top = `${event.offsetY + 16}px`;
  }
}

/** A layer as large as the canvas; cleared if it is to be. */
function layer(canvas, like, clear) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(like.clientWidth * scale), Math.round(like.clientHeight * scale)];
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const paint = canvas.getContext('2d');
  paint.setTransform(scale, 0, 0, scale, 0, 0);
  if (clear) paint.clearRect(0, 0, like.clientWidth, like.clientHeight);
  paint.globalAlpha = 1;
  return paint;
}

function dot(paint, x, y, size, colour) {
  paint.fillStyle = colour;
  paint.fillRect(x - size * 0.9, y - size * 0.9, size * 1.8, size * 1.8);
}

/** A host: a disc that fills like a clock. */
function pie(paint, x, y, size, done, colour) {
  const turn = (Math.min(done, 1000) / 1000) * 2 * Math.PI;
  paint.fillStyle = colour('panel');
  paint.beginPath();
  paint.arc(x, y, size + 1.2, 0, 2 * Math.PI);
  paint.fill();
  paint.fillStyle = colour('missing');
  paint.beginPath();
  paint.arc(x, y, size, 0, 2 * Math.PI);
  paint.fill();
  paint.fillStyle = colour(done >= 1000 ? 'ready' : 'most');
  paint.beginPath();
  paint.moveTo(x, y);
  paint.arc(x, y, size, -Math.PI / 2, turn - Math.PI / 2);
  paint.closePath();
  paint.fill();
}

function hexagon(paint, x, y, size, colour) {
  paint.fillStyle = colour;
  paint.beginPath();
  for (let corner = 0; corner < 6; corner += 1) {
    const angle = (corner / 6) * 2 * Math.PI;
    paint.lineTo(x + size * Math.cos(angle), y + size * Math.sin(angle));
  }
  paint.closePath();
  paint.fill();
}

/** Edges bend a little to the left, so that the two directions lie side by side. */
function bend(x1, y1, x2, y2) {
  return [(x1 + x2) / 2 + (y2 - y1) * 0.12, (y1 + y2) / 2 - (x2 - x1) * 0.12];
}

/** The first place whose running sum is above `value`. */
function find(sums, value) {
  let [low, high] = [0, sums.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sums[middle] > value) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Between two colours written as #rrggbb. */
function blend(one, other, share) {
  const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [a, b] = [parts(one), parts(other)];
  const mixed = a.map((value, at) => Math.round(value + (b[at] - value) * Math.min(1, share)));
  return `rgb(${mixed.join(' ')})`;
}
