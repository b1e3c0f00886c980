// Swarms, and the page of one blob: its graph, who has what, and where the bytes came from.

import { SwarmGraph } from './graph.js';
import { ask, bar, bytes, card, duration, el, hostLink, parts, percent, query, rate, received, say, share, shortDigest, swarmLink, table, whole } from './parts.js';

export function show(room, argument) {
  return argument ? blob(room, argument) : list(room);
}

const wake = () => window.dispatchEvent(new Event('kraken-ask'));

function list(room) {
  const search = el('input', { type: 'search', placeholder: 'Digest, or its beginning', 'aria-label': 'Search by digest', oninput: wake });
  const found = el('span', { class: 'dim', role: 'status' });
  const rows = table(
    [
      { name: 'Blob', same: (it) => it.digest, cell: (it) => el('a', { href: swarmLink(it.digest), class: 'digest', title: it.digest }, shortDigest(it.digest)) },
      { name: 'Namespace', cell: (it) => it.namespace || '–' },
      { name: 'Size', number: true, cell: (it) => (it.length ? bytes(it.length) : '–') },
      { name: 'Hosts that have it', same: (it) => `${it.ready} ${it.members}`, cell: (it) => [bar(share(it.ready, it.members)), `${whole(it.ready)} of ${whole(it.members)}`] },
      { name: 'Of all bytes', number: true, cell: (it) => percent(it.done) },
      { name: 'Hosts receive', number: true, cell: (it) => rate(it.rate) },
      { name: 'Time left', number: true, cell: (it) => (it.ready === it.members ? '' : duration(it.seconds_left)) },
    ],
    (it) => it.digest,
    'Hosts share no such blob.',
  );
  room.append(el('h1', {}, 'Swarms'), el('div', { class: 'row' }, search, found), el('section', { class: 'panel' }, rows.node));
  return {
    title: 'Swarms',
    load: (signal) => ask(`swarms?${query({ search: search.value.trim().toLowerCase(), limit: 100 })}`, signal),
    draw(data) {
      rows.set(data.swarms);
      const all = data.matching === data.total ? `${whole(data.total)} blobs` : `${whole(data.matching)} of ${whole(data.total)} blobs`;
      say(found, data.swarms.length < data.matching ? `${all}, the first ${data.swarms.length}` : all);
    },
  };
}

const PAGE = 50;

function blob(room, digest) {
  const cards = { ready: card('Hosts that have all of it'), done: card('Of all bytes are there'), rate: card('Hosts receive'), left: card('Time left'), size: card('Size') };
  const origin = el('div');
  const copies = el('p', { class: 'legend' });
  const graph = new SwarmGraph((id, isOrigin) => (isOrigin ? undefined : location.assign(hostLink(id))));
  const scale = el('span', {}, 'has nothing', el('span', { class: 'scale' }), 'nearly all');
  const filling = el('span', {}, el('i', { class: 'most' }), 'what a host has');
  const legend = el('p', { class: 'legend' }, scale, filling, el('span', {}, el('i', { class: 'ready' }), 'all of it'), el('span', {}, el('i', { class: 'origins' }), 'origin, and piece from one'), el('span', {}, el('i', { class: 'agents' }), 'piece from an agent'));
  const order = el('select', { 'aria-label': 'Order of the hosts', onchange: again }, el('option', { value: 'least' }, 'least first'), el('option', { value: 'most' }, 'most first'), el('option', { value: 'rate' }, 'fastest first'), el('option', { value: 'name' }, 'by name'));
  const turn = pager(() => wake());
  const members = table(
    [
      { name: 'Host', same: (it) => it.id + it.name, cell: (it) => el('a', { href: hostLink(it.id) }, it.name) },
      { name: 'Zone', cell: (it) => it.zone ?? '–' },
      { name: 'Has', same: (it) => it.done, cell: (it) => [bar(it.done), percent(it.done)] },
      { name: 'Receives', number: true, cell: (it) => rate(received(it.rate)) },
      { name: 'Sends', number: true, cell: (it) => rate(it.rate.sent) },
      { name: 'Sent', number: true, cell: (it) => bytes(it.moved.sent) },
      { name: 'Links', number: true, cell: (it) => `${it.links}` },
      { name: 'Most came from', same: (it) => it.sources.map((from) => `${from.id}${bytes(from.bytes)}`).join(), cell: sources, wrap: true },
    ],
    (it) => it.id,
    'No host takes part.',
  );
  function again() {
    turn.first();
    wake();
  }
  room.append(
    el('h1', {}, 'Blob ', el('span', { class: 'digest' }, digest)),
    el('div', { class: 'cards' }, Object.values(cards).map((it) => it.node)),
    el('section', { class: 'panel' }, graph.node, legend),
    el('section', { class: 'panel' }, el('h2', {}, 'Where the bytes came from'), origin, copies),
    el('section', { class: 'panel' }, el('div', { class: 'row' }, el('h2', { class: 'grow' }, 'Who has what'), order, turn.node), members.node),
  );
  const path = `swarms/${encodeURIComponent(digest)}`;
  let seen = 0;
  return {
    title: shortDigest(digest),
    async load(signal) {
      const rows = query({ order: order.value, offset: turn.offset(), limit: PAGE });
      // A large graph is asked for every other time.
      seen += 1;
      const wanted = seen % 2 === 1 || graph.isSmall ? ask(`${path}/graph`, signal) : undefined;
      const [swarm, page, drawn] = await Promise.all([ask(path, signal), ask(`${path}/members?${rows}`, signal), wanted]);
      return { swarm, page, drawn };
    },
    draw({ swarm, page, drawn }) {
      cards.ready.set(percent(share(swarm.ready, swarm.members)), `${whole(swarm.ready)} of ${whole(swarm.members)} hosts`);
      cards.done.set(percent(swarm.done), swarm.namespace ? `namespace ${swarm.namespace}` : '');
      cards.rate.set(rate(swarm.rate), '');
      cards.left.set(swarm.ready === swarm.members ? 'done' : duration(swarm.seconds_left), swarm.rate > 0 && swarm.ready < swarm.members ? 'at this rate' : '');
      cards.size.set(swarm.length ? bytes(swarm.length) : '–', swarm.length ? `${whole(swarm.length)} bytes` : '');
      const got = received(swarm.moved);
      origin.replaceChildren(parts(swarm.moved));
      const times = swarm.length ? `, ${(swarm.moved.from_origins / swarm.length).toFixed(2)} times the blob` : '';
      copies.replaceChildren(
        el('span', {}, el('i', { class: 'agents' }), `${bytes(swarm.moved.from_agents)} from agents`),
        el('span', {}, el('i', { class: 'origins' }), `${bytes(swarm.moved.from_origins)} from origins${times}`),
        el('span', {}, got > 0 ? `as reported by the hosts since they started` : 'no host has reported any'),
      );
      if (drawn) {
        graph.set(drawn);
        graph.isSmall = drawn.ids.length <= 500;
        scale.hidden = graph.isRound();
        filling.hidden = !graph.isRound();
      }
      members.set(page.members);
      turn.set(page.total);
    },
    missing() {
      members.set([]);
      cards.ready.set('–', 'no host takes part');
    },
    stop: () => graph.stop(),
  };
}

function sources(member) {
  if (member.sources.length === 0) return el('span', { class: 'dim' }, '–');
  return member.sources.flatMap((from, place) => {
    const name = from.is_origin ? from.name : el('a', { href: hostLink(from.id) }, from.name);
    return [place ? ', ' : '', name, el('span', { class: 'dim' }, ` ${bytes(from.bytes)}`)];
  });
}

/** Buttons to turn pages. */
export function pager(turned) {
  let [page, total] = [0, 0];
  const said = el('span', { class: 'dim' });
  const back = el('button', { type: 'button', 'aria-label': 'Page before', onclick: () => go(page - 1) }, '‹');
  const on = el('button', { type: 'button', 'aria-label': 'Next page', onclick: () => go(page + 1) }, '›');
  const node = el('span', {}, back, ' ', said, ' ', on);
  const last = () => Math.max(0, Math.ceil(total / PAGE) - 1);
  function go(to) {
    page = Math.max(0, Math.min(to, last()));
    drawn();
    turned();
  }
  function drawn() {
    node.hidden = total <= PAGE;
    say(said, `${whole(page * PAGE + 1)}–${whole(Math.min((page + 1) * PAGE, total))} of ${whole(total)}`);
    back.disabled = page === 0;
    on.disabled = page >= last();
  }
  drawn();
  return {
    node,
    offset: () => page * PAGE,
    first: () => (page = 0),
    set(count) {
      total = count;
      page = Math.min(page, last());
      drawn();
    },
  };
}
