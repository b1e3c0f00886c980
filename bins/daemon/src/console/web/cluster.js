// The cluster: what runs, whether it is well, and how the origins share the blobs.

import { ask, card, duration, el, percent, rate, received, share, table, whole } from './parts.js';

const KINDS = { origin: 'origin', tracker: 'tracker', 'build-index': 'build-index', proxy: 'proxy' };
const STATES = { ready: 'ready', unready: 'not ready', down: 'does not answer' };

export function show(room) {
  const cards = { hosts: card('Hosts'), swarms: card('Blobs that hosts share'), rate: card('Hosts receive'), origins: card('Of it from origins'), up: card('This tracker runs') };
  const nodes = table(
    [
      { name: 'Process', same: (it) => `${it.kind}${it.name}`, cell: (it) => [KINDS[it.kind], ' ', el('span', { class: 'dim' }, it.kind === 'origin' ? it.name : '')] },
      { name: 'State', same: (it) => `${it.state}${it.why}`, cell: (it) => state(it), wrap: true },
      { name: 'Version', cell: (it) => it.version ?? '–' },
      { name: 'Zone', cell: (it) => it.zone ?? '–' },
      { name: 'Address', same: (it) => it.url, cell: (it) => el('span', { class: 'dim' }, it.url) },
    ],
    (it) => `${it.kind} ${it.url}`,
    'No process is known.',
  );
  const ring = el('div', { class: 'ring' });
  const owned = table(
    [
      { name: 'Origin', same: (it) => it.name + it.state, cell: (it) => [el('span', { class: `dot ${it.state}` }), ' ', it.name] },
      { name: 'Owns of all blobs', number: true, cell: (it) => percent(it.share) },
    ],
    (it) => it.name,
    'No origin is known.',
  );
  const tally = (name, what) => table([{ name, cell: (it) => it.name || '–' }, { name: 'Hosts', number: true, cell: (it) => whole(it.hosts) }], (it) => it.name, what);
  const versions = tally('Version', 'No host reports.');
  const zones = tally('Zone', 'No host reports.');
  room.append(
    el('h1', {}, 'Cluster'),
    el('div', { class: 'cards' }, Object.values(cards).map((it) => it.node)),
    el('div', { class: 'columns' },
      el('div', {},
        el('section', { class: 'panel' }, el('h2', {}, 'Processes'), nodes.node)),
      el('div', {},
        el('section', { class: 'panel' }, el('h2', {}, 'Ring of the origins'), ring))),
    el('div', { class: 'columns even' },
      el('section', { class: 'panel' }, el('h2', {}, 'Versions of the hosts'), versions.node),
      el('section', { class: 'panel' }, el('h2', {}, 'Zones of the hosts'), zones.node)),
  );
  const disc = el('div');
  ring.append(disc, owned.node);
  let drawn = '';
  return {
    title: 'Cluster',
    load: (signal) => ask('cluster', signal),
    draw(data) {
      const got = received(data.rate);
      cards.hosts.set(whole(Math.max(data.reporting, data.announcing)), `${whole(data.reporting)} report, ${whole(data.announcing)} announce`);
      cards.swarms.set(whole(data.swarms), `${whole(data.announces)} announces answered`);
      cards.rate.set(rate(got), `each host reports every ${data.interval_ms / 1000} s`);
      cards.origins.set(got > 0 ? percent(share(data.rate.from_origins, got)) : '–', rate(data.rate.from_origins));
      cards.up.set(duration(data.up_seconds), `version ${data.version}`);
      nodes.set(data.nodes);
      const origins = data.nodes.filter((it) => it.kind === 'origin');
      owned.set(origins);
      const said = JSON.stringify(origins.map((it) => [it.name, it.state, it.share]));
      if (said !== drawn) disc.replaceChildren(donut(origins));
      drawn = said;
      const counted = (counts) => Object.entries(counts).map(([name, hosts]) => ({ name, hosts })).sort((one, other) => other.hosts - one.hosts).slice(0, 12);
      versions.set(counted(data.versions));
      zones.set(counted(data.zones));
    },
  };
}

function state(node) {
  const why = node.why ? el('span', { class: node.state === 'down' ? 'bad' : 'warn' }, `: ${node.why}`) : '';
  return [el('span', { class: `dot ${node.state}` }), ' ', STATES[node.state], why];
}

const SVG = 'http://www.w3.org/2000/svg';

/** The shares of the origins as a ring. */
function donut(origins) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '-100 -100 200 200');
  svg.setAttribute('role', 'img');
  const ready = origins.filter((it) => it.state === 'ready').length;
  svg.setAttribute('aria-label', `${ready} of ${origins.length} origins are ready`);
  const all = origins.reduce((sum, it) => sum + it.share, 0) || 1;
  let from = 0;
  origins.forEach((it, place) => {
    const to = from + Math.min(it.share / all, 0.9999);
    const path = document.createElementNS(SVG, 'path');
    path.setAttribute('d', arc(from, to, 92, 60));
    path.setAttribute('class', `${it.state} ${place % 2 ? 'odd' : ''}`);
    const title = document.createElementNS(SVG, 'title');
    title.textContent = `${it.name}: ${percent(it.share)} of all blobs`;
    path.append(title);
    svg.append(path);
    from = to;
  });
  svg.append(text(`${ready} of ${origins.length}`, 2, ''), text('origins ready', 18, 'small'));
  return svg;
}

function text(content, y, kind) {
  const node = document.createElementNS(SVG, 'text');
  node.setAttribute('y', y);
  node.setAttribute('class', kind);
  node.textContent = content;
  return node;
}

function arc(from, to, outer, inner) {
  const at = (turn, radius) => `${(radius * Math.sin(turn * 2 * Math.PI)).toFixed(2)} ${(-radius * Math.cos(turn * 2 * Math.PI)).toFixed(2)}`;
  const far = to - from > 0.5 ? 1 : 0;
  return `M ${at(from, outer)} A ${outer} ${outer} 0 ${far} 1 ${at(to, outer)} L ${at(to, inner)} A ${inner} ${inner} 0 ${far} 0 ${at(from, inner)} Z`;
}
