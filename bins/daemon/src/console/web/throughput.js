// What the hosts moved in the last hour.

import { chart } from './chart.js';
import { ask, bytes, card, el, percent, rate, received, share } from './parts.js';

const SPANS = [[300, '5 minutes'], [900, '15 minutes'], [3600, '1 hour']];

export function show(room) {
  const cards = { now: card('Hosts receive'), peak: card('At most'), total: card('Received'), origins: card('Of it from origins'), sent: card('Agents and origins sent') };
  const drawn = chart();
  let span = 300;
  let last = null;
  const buttons = SPANS.map(([seconds, name]) => el('button', { type: 'button', 'aria-pressed': String(seconds === span), onclick: () => choose(seconds) }, name));
  room.append(
    el('h1', {}, 'Throughput'),
    el('div', { class: 'cards' }, Object.values(cards).map((it) => it.node)),
    el('section', { class: 'panel' },
      el('div', { class: 'row' }, el('h2', { class: 'grow' }, 'Verified bytes that hosts received'), buttons),
      drawn.node,
      el('p', { class: 'legend' }, el('span', {}, el('i', { class: 'agents' }), 'from agents'), el('span', {}, el('i', { class: 'origins' }), 'from origins'), el('span', {}, 'The last seconds fill up as hosts report.'))),
  );
  function choose(seconds) {
    span = seconds;
    buttons.forEach((button, place) => button.setAttribute('aria-pressed', String(SPANS[place][0] === span)));
    if (last) draw(last);
  }
  function draw(data) {
    last = data;
    const step = data.throughput.step_seconds;
    const inside = data.throughput.steps.filter(([ago]) => ago <= span + step);
    const points = inside.map(([ago, moved]) => ({ ago: Math.max(0, ago - step / 2), from_agents: moved.from_agents / step, from_origins: moved.from_origins / step }));
    drawn.set(points, span);
    const sum = inside.reduce((sum, [, moved]) => ({ from_agents: sum.from_agents + moved.from_agents, from_origins: sum.from_origins + moved.from_origins, sent: sum.sent + moved.sent }), { from_agents: 0, from_origins: 0, sent: 0 });
    const within = `in ${SPANS.find(([seconds]) => seconds === span)[1]}`;
    cards.now.set(rate(received(data.cluster.rate)), `${rate(data.cluster.rate.from_origins)} from origins`);
    cards.peak.set(rate(points.reduce((most, it) => Math.max(most, it.from_agents + it.from_origins), 0)), within);
    cards.total.set(bytes(received(sum)), within);
    cards.origins.set(received(sum) > 0 ? percent(share(sum.from_origins, received(sum))) : '–', bytes(sum.from_origins));
    cards.sent.set(bytes(sum.sent), 'by hosts that report');
  }
  return {
    title: 'Throughput',
    async load(signal) {
      const [throughput, cluster] = await Promise.all([ask('throughput', signal), ask('cluster', signal)]);
      return { throughput, cluster };
    },
    draw,
    stop: () => drawn.stop(),
  };
}
