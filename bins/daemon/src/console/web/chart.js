// Throughput over time as stacked areas on a canvas.

import { bytes, el } from './parts.js';

/** Colours come from the style sheet, so that they change with the light. */
export function colours(node) {
  const style = getComputedStyle(node);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

/** Gives a canvas as many pixels as the screen has for it; its context then counts in CSS pixels. */
export function fit(canvas) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const [pixels, lines] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== pixels || canvas.height !== lines) {
    canvas.width = pixels;
    canvas.height = lines;
  }
  const paint = canvas.getContext('2d');
  paint.setTransform(scale, 0, 0, scale, 0, 0);
  return { paint, width, height };
}

const LEFT = 78;
const RIGHT = 10;
const TOP = 12;
const BOTTOM = 26;

/** A chart of `[{ ago, from_agents, from_origins }]`, rates in bytes per second, the newest last. */
export function chart() {
  const canvas = el('canvas', { class: 'chart', role: 'img', 'aria-label': 'Bytes per second over time' });
  const tip = el('div', { class: 'tip', hidden: true });
  const node = el('div', { class: 'stage' }, canvas, tip);
  const state = { points: [], span: 300, hover: null };
  canvas.addEventListener('pointermove', (event) => {
    state.hover = event.offsetX;
    draw(canvas, tip, state);
  });
  canvas.addEventListener('pointerleave', () => {
    state.hover = null;
    draw(canvas, tip, state);
  });
  const watch = new ResizeObserver(() => draw(canvas, tip, state));
  watch.observe(canvas);
  return {
    node,
    set(points, span) {
      Object.assign(state, { points, span });
      draw(canvas, tip, state);
    },
    stop: () => watch.disconnect(),
  };
}

function draw(canvas, tip, { points, span, hover }) {
  if (!canvas.isConnected || canvas.clientWidth === 0) return;
  const { paint, width, height } = fit(canvas);
  const colour = colours(canvas);
  const most = points.reduce((most, it) => Math.max(most, it.from_agents + it.from_origins), 0);
  const top = nice(most || 1024 * 1024);
  const x = (ago) => width - RIGHT - ((width - LEFT - RIGHT) * ago) / span;
  const y = (value) => height - BOTTOM - ((height - TOP - BOTTOM) * value) / top;
  paint.clearRect(0, 0, width, height);
  grid(paint, colour, { x, y, top, span, width });
  paint.save();
  paint.beginPath();
  paint.rect(LEFT, 0, width - LEFT - RIGHT, height);
  paint.clip();
  area(paint, points, x, (it) => y(it.from_origins), () => y(0), colour('origins'));
  area(paint, points, x, (it) => y(it.from_origins + it.from_agents), (it) => y(it.from_origins), colour('agents'));
  paint.restore();
  const near = hover === null ? undefined : points.reduce((best, it) => (!best || Math.abs(x(it.ago) - hover) < Math.abs(x(best.ago) - hover) ? it : best), undefined);
  tip.hidden = !near;
  if (!near) return;
  paint.strokeStyle = colour('dim');
  paint.setLineDash([3, 3]);
  paint.beginPath();
  paint.moveTo(x(near.ago), TOP);
  paint.lineTo(x(near.ago), height - BOTTOM);
  paint.stroke();
  paint.setLineDash([]);
  tip.textContent = `${near.ago} s ago: ${bytes(near.from_agents)}/s from agents, ${bytes(near.from_origins)}/s from origins`;
  tip.style.left = `${Math.max(4, Math.min(x(near.ago) - tip.offsetWidth / 2, width - tip.offsetWidth - 4))}px`;
  tip.style.top = '8px';
}

function area(paint, points, x, upper, lower, colour) {
  if (points.length === 0) return;
  paint.beginPath();
  points.forEach((it, place) => (place ? paint.lineTo(x(it.ago), upper(it)) : paint.moveTo(x(it.ago), upper(it))));
  const line = new Path2D();
  points.forEach((it, place) => (place ? line.lineTo(x(it.ago), upper(it)) : line.moveTo(x(it.ago), upper(it))));
  for (const it of [...points].reverse()) paint.lineTo(x(it.ago), lower(it));
  paint.closePath();
  paint.fillStyle = colour;
  paint.globalAlpha = 0.28;
  paint.fill();
  paint.globalAlpha = 1;
  paint.strokeStyle = colour;
  paint.lineWidth = 1.6;
  paint.stroke(line);
}

function grid(paint, colour, { x, y, top, span, width }) {
  paint.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  paint.lineWidth = 1;
  paint.strokeStyle = colour('line');
  paint.fillStyle = colour('dim');
  paint.textAlign = 'right';
  paint.textBaseline = 'middle';
  for (let part = 0; part <= 4; part += 1) {
    const value = (top * part) / 4;
    const at = Math.round(y(value)) + 0.5;
    paint.beginPath();
    paint.moveTo(LEFT, at);
    paint.lineTo(width - RIGHT, at);
    paint.stroke();
    paint.fillText(part ? `${bytes(value)}/s` : '0', LEFT - 8, at);
  }
  paint.textBaseline = 'top';
  for (let part = 0; part <= 5; part += 1) {
    const ago = Math.round((span * part) / 5);
    paint.textAlign = part === 0 ? 'right' : 'center';
    paint.fillText(ago === 0 ? 'now' : ago < 120 ? `${ago} s ago` : `${Math.round(ago / 60)} min ago`, x(ago), y(0) + 8);
  }
}

/** The next power of two: scales of bytes look even then. */
function nice(value) {
  let top = 1024;
  while (top < value) top *= 2;
  return top;
}
