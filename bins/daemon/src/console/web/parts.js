// What all pages are made of: elements, tables, numbers for people.

/** An element with properties and children; text becomes text, never HTML. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'class') node.className = value;
    else if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((it) => it !== undefined && it !== null));
  return node;
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

export function bytes(count) {
  let unit = 0;
  let value = Number(count) || 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

export const rate = (perSecond) => (perSecond > 0 ? `${bytes(perSecond)}/s` : '–');
export const received = (moved) => moved.from_origins + moved.from_agents;
export const whole = (count) => count.toLocaleString('en');

/** Percent of thousandths; never 100 before it is all. */
export function percent(thousandths) {
  if (thousandths >= 1000) return '100 %';
  const isNear = (thousandths > 0 && thousandths < 100) || thousandths >= 990;
  return `${isNear ? (thousandths / 10).toFixed(1) : Math.floor(thousandths / 10)} %`;
}

/** A part of a whole that is never rounded up to all of it. */
export const share = (part, of) => (of > 0 ? Math.floor((part * 1000) / of) : 0);

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export const shortDigest = (digest) => digest.replace('sha256:', '').slice(0, 16);
export const swarmLink = (digest) => `#/swarms/${digest}`;
export const hostLink = (id) => `#/hosts/${id}`;

/** A bar that is so full; a size goes through the style's object, which the policy allows. */
export function bar(thousandths, kind = '') {
  const fill = el('i');
  fill.style.width = `${Math.min(100, thousandths / 10)}%`;
  const ready = thousandths >= 1000 ? 'ready' : '';
  return el('span', { class: `bar ${kind} ${ready}`, role: 'img', 'aria-label': percent(thousandths) }, fill);
}

/** Which part came from agents and which from origins. */
export function parts(moved) {
  const all = received(moved);
  const part = (name, value) => {
    const node = el('i', { class: name });
    node.style.width = all > 0 ? `${(100 * value) / all}%` : '0';
    return node;
  };
  const said = `${bytes(moved.from_agents)} from agents, ${bytes(moved.from_origins)} from origins`;
  return el('div', { class: 'parts', role: 'img', 'aria-label': said }, part('agents', moved.from_agents), part('origins', moved.from_origins));
}

/** A card with a number that changes. */
export function card(what) {
  const value = el('div', { class: 'value' }, '–');
  const more = el('div', { class: 'more' });
  const node = el('div', { class: 'card' }, el('div', { class: 'what' }, what), value, more);
  return {
    node,
    set(text, below = '') {
      say(value, text);
      say(more, below);
    },
  };
}

/** Changes a text only if it is another: a selection in it stays. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * A table whose rows are kept by their keys, so that what has the focus keeps it. A column is
 * `{ name, number, cell(item) }`; a cell is a text or a list of nodes, and is drawn anew when
 * `same(item)` of its column, or the text, is another than before.
 */
export function table(columns, key, whenEmpty) {
  const head = columns.map((it) => el('th', { scope: 'col', class: it.number ? 'number' : '' }, it.name));
  const body = el('tbody');
  const empty = el('p', { class: 'empty' }, whenEmpty);
  const node = el('div', { class: 'wide' }, el('table', {}, el('thead', {}, el('tr', {}, head)), body), empty);
  const rows = new Map();
  const drawn = (row, item) => {
    columns.forEach((column, place) => {
      const now = column.same ? column.same(item) : column.cell(item);
      if (row.said[place] === now) return;
      row.said[place] = now;
      row.cells[place].replaceChildren(...[column.cell(item)].flat());
    });
  };
  const made = () => {
    const cells = columns.map((it) => el('td', { class: `${it.number ? 'number' : ''} ${it.wrap ? 'wrap' : ''}` }));
    return { cells, said: [], node: el('tr', {}, cells) };
  };
  return {
    node,
    set(items) {
      const before = new Set(rows.keys());
      items.forEach((item, place) => {
        const name = key(item);
        before.delete(name);
        const row = rows.get(name) ?? made();
        rows.set(name, row);
        drawn(row, item);
        if (body.children[place] !== row.node) body.insertBefore(row.node, body.children[place] ?? null);
      });
      for (const name of before) {
        rows.get(name).node.remove();
        rows.delete(name);
      }
      empty.hidden = items.length > 0;
    },
  };
}

/** Asks the tracker; throws what it says is wrong. */
export async function ask(path, signal) {
  const answer = await fetch(`api/${path}`, { signal, headers: { accept: 'application/json' } });
  if (answer.ok) return answer.json();
  const body = await answer.json().catch(() => ({}));
  const error = new Error(body.error?.message ?? `the tracker answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

export const query = (fields) => new URLSearchParams(fields).toString();
