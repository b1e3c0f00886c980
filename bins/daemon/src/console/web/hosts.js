// Hosts, and the page of one host: its blobs, and who sent them.

import { ask, bar, bytes, card, el, hostLink, parts, percent, query, rate, received, say, shortDigest, swarmLink, table, whole } from './parts.js';
import { pager } from './swarms.js';

export function show(room, argument) {
  return argument ? host(room, argument) : list(room);
}

const wake = () => window.dispatchEvent(new Event('kraken-ask'));

function list(room) {
  const turn = pager(wake);
  const changed = () => {
    turn.first();
    wake();
  };
  const search = el('input', { type: 'search', placeholder: 'Name, address, zone or identity', 'aria-label': 'Search hosts', oninput: changed });
  const found = el('span', { class: 'dim grow', role: 'status' });
  const rows = table(
    [
      { name: 'Host', same: (it) => it.id + it.name, cell: (it) => el('a', { href: hostLink(it.id) }, it.name) },
      { name: 'Address', cell: (it) => it.addr },
      { name: 'Zone', cell: (it) => it.zone ?? '–' },
      { name: 'Version', cell: (it) => it.version || '–' },
      { name: 'Receives', number: true, cell: (it) => rate(received(it.rate)) },
      { name: 'Sends', number: true, cell: (it) => rate(it.rate.sent) },
      { name: 'Received', number: true, cell: (it) => bytes(received(it.moved)) },
      { name: 'Sent', number: true, cell: (it) => bytes(it.moved.sent) },
    ],
    (it) => it.id,
    'No such host reports.',
  );
  room.append(el('h1', {}, 'Hosts'), el('div', { class: 'row' }, search, found, turn.node), el('section', { class: 'panel' }, rows.node));
  return {
    title: 'Hosts',
    load: (signal) => ask(`hosts?${query({ search: search.value.trim(), offset: turn.offset(), limit: 50 })}`, signal),
    draw(data) {
      rows.set(data.hosts);
      turn.set(data.matching);
      say(found, data.matching === data.total ? `${whole(data.total)} report` : `${whole(data.matching)} of ${whole(data.total)}`);
    },
  };
}

function host(room, id) {
  const cards = { gets: card('Receives'), sends: card('Sends'), zone: card('Zone'), version: card('Version') };
  const title = el('h1', {}, `Host ${id}`);
  const address = el('p', { class: 'dim' });
  const blobs = el('div');
  const shown = new Map();
  room.append(title, address, el('div', { class: 'cards' }, Object.values(cards).map((it) => it.node)), blobs);
  const empty = el('p', { class: 'empty' }, 'Nothing has moved there since this tracker heard of it.');
  return {
    title: 'Host',
    load: (signal) => ask(`hosts/${encodeURIComponent(id)}`, signal),
    draw(data) {
      say(title, `Host ${data.name}`);
      say(address, `${data.addr} · identity ${data.id}…`);
      cards.gets.set(rate(received(data.rate)), `${bytes(received(data.moved))} in all`);
      cards.sends.set(rate(data.rate.sent), `${bytes(data.moved.sent)} in all`);
      cards.zone.set(data.zone ?? '–');
      cards.version.set(data.version || '–');
      const digests = new Set(data.blobs.map((it) => it.digest));
      for (const [digest, it] of shown) {
        if (digests.has(digest)) continue;
        it.node.remove();
        shown.delete(digest);
      }
      for (const it of data.blobs) {
        if (!shown.has(it.digest)) {
          shown.set(it.digest, atHost(it));
          blobs.append(shown.get(it.digest).node);
        }
        shown.get(it.digest).set(it);
      }
      if (data.blobs.length > 0) empty.remove();
      else blobs.append(empty);
    },
    missing() {
      say(address, 'It does not report now.');
    },
  };
}

function atHost({ digest }) {
  const [has, moved, said] = [el('p', { class: 'legend' }), el('div'), el('span', { class: 'dim' })];
  const from = table(
    [
      { name: 'Came from', same: (it) => it.id + it.name, cell: (it) => (it.is_origin ? `${it.name} (origin)` : el('a', { href: hostLink(it.id) }, it.name)) },
      { name: 'Bytes', number: true, cell: (it) => bytes(it.bytes) },
      { name: 'Now', number: true, cell: (it) => rate(it.rate) },
    ],
    (it) => it.id,
    'It was there before, or was taken in elsewhere.',
  );
  const link = el('a', { href: swarmLink(digest), class: 'digest', title: digest }, shortDigest(digest));
  const node = el('section', { class: 'panel' }, el('h2', {}, link, ' ', said), has, moved, from.node);
  return {
    node,
    set(blob) {
      say(said, `${blob.namespace || 'no namespace'} · ${bytes(blob.length)} · receives ${rate(received(blob.rate))} · sends ${rate(blob.rate.sent)}`);
      has.replaceChildren(el('span', {}, bar(blob.done), `${percent(blob.done)} is here`), el('span', {}, el('i', { class: 'agents' }), `${bytes(blob.moved.from_agents)} from agents`), el('span', {}, el('i', { class: 'origins' }), `${bytes(blob.moved.from_origins)} from origins`), el('span', {}, `${bytes(blob.moved.sent)} sent to others`));
      moved.replaceChildren(parts(blob.moved));
      from.set(blob.sources);
    },
  };
}
