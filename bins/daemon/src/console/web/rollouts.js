// Rollouts: how many hosts have an image or a blob, and when the others will.

import { ask, bar, bytes, duration, el, percent, query, rate, say, share, shortDigest, swarmLink, whole } from './parts.js';

export function show(room, argument) {
  const input = el('input', { type: 'search', placeholder: 'repository:tag, or sha256:…', 'aria-label': 'Image or digest', value: argument });
  const form = el('form', { class: 'row' }, input, el('button', { type: 'submit' }, 'Follow'));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    location.hash = input.value.trim() ? `#/rollouts/${encodeURIComponent(input.value.trim())}` : '#/rollouts';
  });
  const followed = el('div');
  const running = el('div');
  const problem = el('p', { class: 'warn', role: 'status' });
  room.append(el('h1', {}, 'Rollouts'), form, problem);
  if (argument) room.append(el('section', { class: 'panel' }, el('h2', {}, argument), followed));
  room.append(el('section', { class: 'panel' }, el('h2', {}, 'Blobs that hosts lack'), running));
  const kept = { followed: keeper(followed, 'No host has asked for it.'), running: keeper(running, 'Every host has all that it wants.') };
  return {
    title: 'Rollouts',
    async load(signal) {
      const swarms = ask(`swarms?${query({ limit: 100 })}`, signal);
      const one = argument ? ask(`rollout?${query({ of: argument })}`, signal).catch((error) => ({ error })) : undefined;
      const [list, wanted] = await Promise.all([swarms, one]);
      return { list, wanted };
    },
    draw({ list, wanted }) {
      say(problem, wanted?.error ? (wanted.error.status === 404 ? `${argument}: there is no such image, or no host has asked for this blob` : wanted.error.message) : '');
      if (wanted?.rollouts) {
        const several = wanted.rollouts.length > 1;
        kept.followed(wanted.rollouts.filter((it) => !several || it.hosts > 0).map((it) => ({ ...it, what: several ? `image ${shortDigest(it.digest)}` : shortDigest(it.digest), members: it.hosts, length: it.bytes })));
      }
      kept.running(list.swarms.filter((it) => it.ready < it.members).map((it) => ({ ...it, what: shortDigest(it.digest), link: swarmLink(it.digest) })));
    },
  };
}

/** Keeps the row of each rollout, so that links in it keep the focus. */
function keeper(room, whenEmpty) {
  const rows = new Map();
  const empty = el('p', { class: 'empty' }, whenEmpty);
  return (items) => {
    const now = new Set(items.map((it) => it.digest));
    for (const [digest, it] of rows) {
      if (now.has(digest)) continue;
      it.node.remove();
      rows.delete(digest);
    }
    for (const item of items) {
      if (!rows.has(item.digest)) {
        rows.set(item.digest, row(item));
        room.append(rows.get(item.digest).node);
      }
      rows.get(item.digest).set(item);
    }
    if (items.length > 0) empty.remove();
    else room.append(empty);
  };
}

function row(item) {
  const name = item.link ? el('a', { href: item.link, class: 'digest' }, item.what) : el('span', { class: 'digest' }, item.what);
  const [number, hosts, progress, said, blobs] = [el('span', { class: 'big-number' }), el('span', { class: 'dim' }), el('div'), el('p', { class: 'legend' }), el('p', { class: 'legend' })];
  const node = el('article', { class: 'rollout' }, el('div', { class: 'head' }, el('span', {}, name), el('span', {}, number, ' ', hosts)), progress, said, blobs);
  return {
    node,
    set(it) {
      const ready = share(it.ready, it.members);
      say(number, percent(ready));
      say(hosts, `of ${whole(it.members)} hosts ready`);
      progress.replaceChildren(bar(ready, 'big'));
      const left = it.members > 0 && it.ready === it.members ? 'done' : `${duration(it.seconds_left)} left at this rate`;
      said.replaceChildren(el('span', {}, `${whole(it.ready)} ready, ${whole(it.members - it.ready)} to go`), el('span', {}, `${percent(it.done)} of all bytes are there`), el('span', {}, `${it.length ? bytes(it.length) : '–'} for each`), el('span', {}, `hosts receive ${rate(it.rate)}`), el('span', {}, it.rate > 0 || left === 'done' ? left : 'nothing moves'));
      const layers = (it.blobs ?? []).filter(Boolean);
      const digests = layers.map((blob) => `${blob.digest}${blob.ready}`).join();
      if (layers.length > 1 && blobs.dataset.said !== digests) {
        blobs.dataset.said = digests;
        blobs.replaceChildren(...layers.map((blob) => el('a', { href: swarmLink(blob.digest), class: 'digest', title: `${blob.ready} of ${blob.members} hosts` }, `${shortDigest(blob.digest).slice(0, 10)} ${percent(share(blob.ready, blob.members))}`)));
      }
    },
  };
}
