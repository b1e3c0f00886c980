// Which page is shown, and asking for what is on it once a second.

import * as cluster from './cluster.js';
import * as hosts from './hosts.js';
import * as rollouts from './rollouts.js';
import * as swarms from './swarms.js';
import * as throughput from './throughput.js';
import { el, say } from './parts.js';

const PAGES = { cluster, swarms, hosts, throughput, rollouts };
/** The time from one question to the next, in milliseconds. */
const EVERY = 1000;

const main = document.getElementById('main');
const pulse = document.getElementById('pulse');
let current = null;

/** A page is `show(room, argument)`, which gives `{ title, load(signal), draw(data), stop?() }`. */
function open() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, '').split('/');
  const page = PAGES[name] ?? cluster;
  const argument = decode(rest.join('/'));
  current?.end.abort();
  current?.page.stop?.();
  const room = el('div');
  main.replaceChildren(room);
  current = { end: new AbortController(), page: page.show(room, argument), timer: 0 };
  document.title = `${current.page.title} – Kraken`;
  for (const link of document.querySelectorAll('nav a')) {
    const here = link.hash === `#/${PAGES[name] ? name : 'cluster'}`;
    if (here) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  poll(current);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function poll(shown) {
  const { signal } = shown.end;
  while (!signal.aborted) {
    const began = performance.now();
    if (!document.hidden) {
      const data = await asked(shown);
      if (signal.aborted) return;
      if (data) shown.page.draw(data);
      document.body.dataset.loaded = location.hash;
    }
    const wait = Math.max(EVERY - (performance.now() - began), 100);
    await new Promise((done) => {
      shown.wake = done;
      setTimeout(done, wait);
    });
  }
}

/** What the page wants to know; nothing when the tracker does not say. */
async function asked({ page, end }) {
  try {
    const data = await page.load(end.signal);
    beat('ready', 'live');
    return data;
  } catch (error) {
    if (end.signal.aborted) return undefined;
    if (error.status === 404) page.missing?.();
    beat(error.status ? 'unready' : 'down', error.status ? error.message : 'the tracker does not answer');
    return undefined;
  }
}

function beat(state, said) {
  pulse.querySelector('.dot').className = `dot ${state}`;
  say(pulse.querySelector('.said'), said);
}

window.addEventListener('hashchange', () => {
  open();
  main.focus({ preventScroll: false });
});
// What a page changes in its question is asked at once.
window.addEventListener('kraken-ask', () => current?.wake?.());
open();
