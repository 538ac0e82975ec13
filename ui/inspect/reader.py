"""A text with what fired at its bytes, as a browser draws it: raster, tinted text, one byte after another."""

from __future__ import annotations

import base64
import io
import secrets
from typing import Any

import numpy as np
from PIL import Image

from lab.reading import Raster, Reading, loudest, standing_out

from .. import tint

_LOUDEST = 8
"""Neurons that are named at each byte."""


def drawn(reading: Reading, raster: Raster, heard_bytes: int) -> dict[str, Any]:
    """What `DRAW` takes.

    Args:
        heard_bytes: of the text, those that were given; the model wrote the others.
    """
    glyphs, at = [], 0
    characters = tint.Glyphs()
    pieces = [
        glyph
        for byte, bits in zip(reading.data, reading.costs.tolist(), strict=True)
        for glyph in characters.push(byte, bits)
    ]
    for glyph in pieces + characters.flush():
        glyphs.append([at, glyph.badge or glyph.text, glyph.level, bool(glyph.badge), glyph.tooltip])
        at += len(glyph.raw)
    return {
        "run": secrets.token_hex(4),
        "bytes": list(reading.data),
        "heard": heard_bytes,
        "bits": [round(cost, 3) for cost in reading.costs.tolist()],
        "glyphs": glyphs,
        "image": _image(raster),
        "neurons": raster.neurons.tolist(),
        "loudest": _pairs(loudest(reading, _LOUDEST)),
        "special": _pairs(standing_out(reading, _LOUDEST)),
        "firing": (reading.values > 0).sum(1).tolist(),
        "width": reading.point.width,
        "patch": reading.point.bytes_per_row,
        "next": [
            [[byte, round(chance, 4)] for byte, chance in zip(*at_byte, strict=True)]
            for at_byte in zip(reading.likeliest.tolist(), reading.chances.tolist(), strict=True)
        ],
    }


def _pairs(found: list[list[tuple[int, float]]]) -> list[list[list[float]]]:
    return [[[neuron, round(value, 4)] for neuron, value in at_byte] for at_byte in found]


def _image(raster: Raster) -> str:
    """The raster as a PNG whose opacity is activity, a pixel for each byte of each neuron; empty without neurons."""
    if not len(raster.neurons):
        return ""
    opacity = np.sqrt(raster.values / raster.values.max())  # the eye sees the faint ones too
    pixels = np.zeros((*opacity.shape, 2), np.uint8)
    pixels[..., 1] = np.ceil(255 * opacity)
    file = io.BytesIO()
    Image.fromarray(pixels, "LA").save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


TEMPLATE = """
<div class="reader" hidden>
  <div class="raster" tabindex="0" role="group" aria-label="Neurons over bytes. Left and right arrow keys go from byte
    to byte, up and down from neuron to neuron; Enter finds the bytes that fire the neuron.">
    <img alt="Neurons that fire, a line each, over the bytes of the text">
    <i class="here"></i><i class="line" hidden></i>
  </div>
  <p class="spot only-read" aria-live="polite"></p>
  <p class="none" hidden>No neuron of this place fires at any byte of the text.</p>
  <div class="steps">
    <button type="button" data-step="-1" aria-label="One byte back">‹</button>
    <input type="range" min="0" value="0" aria-label="Byte">
    <button type="button" data-step="1" aria-label="One byte on">›</button>
  </div>
  <div class="tint written" tabindex="0" role="region" aria-label="The text, coloured by surprise.
    Left and right arrow keys go from byte to byte"></div>
  <div class="at" aria-live="polite">
    <p class="what"></p>
    <div class="beside">
      <div><h4>Fires most here</h4><ol class="loudest"></ol></div>
      <div><h4>Most above its mean in this text</h4><ol class="special"></ol></div>
      <div><h4>Expected next</h4><ol class="next"></ol></div>
    </div>
  </div>
</div>
"""

DRAW = """
const whole = element.querySelector('.reader');
const find = (name) => whole.querySelector(name);
const image = find('img'), here = find('.here'), line = find('.line'), slider = find('input'), text = find('.written');
let value = null, before = null, at = 0, row = 0, waiting = null;
const named = { 9: 'tab', 10: 'line break', 13: 'carriage return', 32: 'space' };
const label = (byte) => named[byte] || (byte > 32 && byte < 127 ? String.fromCharCode(byte)
  : byte.toString(16).toUpperCase().padStart(2, '0'));
const heardBytes = () => value.bytes.length - value.bytes.length % value.patch;
const bar = (words, part) => {
  const line = document.createElement('li'), fill = document.createElement('i');
  fill.style.width = `${Math.max(1, 100 * part)}%`;
  line.append(words, fill);
  return line;
};
const go = (byte) => {
  if (!value) return;
  at = Math.max(0, Math.min(value.bytes.length - 1, byte));
  slider.value = at;
  here.style.left = `${100 * at / value.bytes.length}%`;
  here.style.width = `${100 / value.bytes.length}%`;
  text.querySelectorAll('.current').forEach((old) => old.classList.remove('current'));
  let shown = null;
  for (const span of text.children) if (Number(span.dataset.at) <= at) shown = span; else break;
  if (shown) {
    shown.classList.add('current');
    const top = shown.offsetTop - text.offsetTop;
    if (top < text.scrollTop || top > text.scrollTop + text.clientHeight - 40) text.scrollTop = top - 40;
  }
  const count = value.firing[at].toLocaleString('en'), width = value.width.toLocaleString('en');
  find('.what').textContent = `Byte ${at + 1} of ${value.bytes.length}: ${label(value.bytes[at])} · `
    + `${value.bits[at].toFixed(2)} bits · ${at < value.heard ? 'read' : 'written by the model'} · `
    + (at >= heardBytes() ? `its patch of ${value.patch} bytes is not complete, so this layer has not heard it yet`
      : `${count} of ${width} neurons fire${value.patch > 1 ? ` at its patch of ${value.patch} bytes` : ''}`);
  slider.setAttribute('aria-valuetext', `byte ${at + 1} of ${value.bytes.length}: ${label(value.bytes[at])}`);
  const most = Math.max(...value.loudest[at].map((one) => one[1]));
  for (const list of ['loudest', 'special']) {
    find(`.${list}`).replaceChildren(...value[list][at].map(([neuron, strength]) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = `neuron ${neuron}`;
      button.title = `Find the bytes that fire neuron ${neuron}`;
      button.addEventListener('click', () => trigger('submit', { neuron }));
      const line = bar(button, strength / most);
      line.append(strength.toPrecision(3));
      return line;
    }));
    if (!value[list][at].length) find(`.${list}`).textContent = 'None.';
  }
  find('.next').replaceChildren(...value.next[at].map(([byte, chance]) => {
    const words = document.createElement('span');
    words.textContent = label(byte);
    const line = bar(words, chance);
    line.append(`${(100 * chance).toFixed(1)} %`);
    return line;
  }));
};
const draw = () => {
  if (value && props.value && value.run === props.value.run) return;
  const same = before && props.value && before.bytes.join() === props.value.bytes.join();
  value = props.value;
  before = value || before;
  row = 0;
  whole.hidden = !value;
  if (!value) return;
  line.hidden = true;
  find('.raster').hidden = !value.image;
  find('.none').hidden = !!value.image;
  image.src = value.image || '';
  image.style.height = `${Math.max(120, Math.min(320, 2 * value.neurons.length))}px`;
  slider.max = value.bytes.length - 1;
  text.replaceChildren(...value.glyphs.map(([first, shown, level, badge, tooltip]) => {
    const span = document.createElement('span');
    span.className = `s${level}${badge ? ' badge' : ''}${shown === '\\n' && level ? ' newline' : ''}`
      + (first < value.heard ? '' : ' own');
    span.textContent = shown;
    span.title = tooltip;
    span.dataset.at = first;
    return span;
  }));
  go(same ? at : Math.max(0, heardBytes() - 1));
};
slider.addEventListener('input', () => go(Number(slider.value)));
whole.addEventListener('click', (event) => {
  const step = event.target.closest('[data-step]'), span = event.target.closest('.written span');
  if (step) go(at + Number(step.dataset.step));
  if (span) go(Number(span.dataset.at));
});
const pointed = (event) => {
  const box = image.getBoundingClientRect(), within = (part, size, count) =>
    Math.max(0, Math.min(count - 1, Math.floor(count * part / size)));
  return [within(event.clientY - box.top, box.height, value.neurons.length),
    within(event.clientX - box.left, box.width, value.bytes.length)];
};
image.addEventListener('mousemove', (event) => {
  const [row, byte] = pointed(event);
  image.title = `neuron ${value.neurons[row]} at byte ${byte + 1}: ${label(value.bytes[byte])}`;
});
const pick = (chosen, soon) => {
  row = Math.max(0, Math.min(value.neurons.length - 1, chosen));
  line.hidden = false;
  line.style.top = `${100 * (row + 0.5) / value.neurons.length}%`;
  clearTimeout(waiting);
  waiting = setTimeout(() => trigger('select', { neuron: value.neurons[row] }), soon);
};
const keys = { ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1), Home: () => go(0),
  End: () => go(value.bytes.length - 1) };
const onRaster = { ...keys, ArrowUp: () => pick(line.hidden ? 0 : row - 1, 200),
  ArrowDown: () => pick(line.hidden ? 0 : row + 1, 200),
  Enter: () => { if (!line.hidden) trigger('submit', { neuron: value.neurons[row] }); } };
for (const [place, taken] of [[find('.raster'), onRaster], [text, keys]])
  place.addEventListener('keydown', (event) => {
    if (!value || !taken[event.key]) return;
    event.preventDefault();
    taken[event.key]();
    if (taken === onRaster && !line.hidden)
      find('.spot').textContent = `neuron ${value.neurons[row]}, line ${row + 1} of ${value.neurons.length}`;
  });
image.addEventListener('click', (event) => {
  const [chosen, byte] = pointed(event);
  go(byte);
  pick(chosen, 0);
});
watch('value', draw);
draw();
"""
"""Draws what `drawn` gives; `submit` asks where a neuron fires, `select` names the one that was pointed at."""

CSS = """
.only-read { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
:is(.reader .raster, .reader .written, #memory-strip [tabindex], .features .attention td):focus-visible {
  outline: 2px solid var(--color-accent); outline-offset: 2px; }
.reader .raster { position: relative; cursor: crosshair; border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-sm); overflow: hidden; background: #ffffff; }
.dark .reader .raster { background: #111827; }
.reader .raster img { display: block; width: 100%; margin: 0; image-rendering: pixelated; }
.dark .reader .raster img { filter: invert(1); }
.reader .here { position: absolute; top: 0; bottom: 0; min-width: 2px; background: var(--color-accent); opacity: 0.55;
  pointer-events: none; }
.reader .line { position: absolute; left: 0; right: 0; height: 1px; background: var(--color-accent);
  pointer-events: none; }
.reader .none { margin: 0; }
.reader .steps { display: flex; gap: 8px; align-items: center; margin: 6px 0 10px; }
.reader .steps input { flex: 1; min-width: 0; accent-color: var(--color-accent); }
.reader button { border: 1px solid var(--border-color-primary); border-radius: var(--radius-sm);
  background: var(--button-secondary-background-fill); color: var(--body-text-color); cursor: pointer; }
.reader .steps button { width: 2.4rem; height: 2.2rem; font-size: 1.2rem; line-height: 1; }
.reader .tint.written { min-height: 4rem; max-height: 16rem; position: relative; }
.reader .tint span { cursor: pointer; }
.reader .tint .current { outline: 2px solid var(--color-accent); outline-offset: 1px; }
.reader .what { margin: 10px 0 6px; font-size: var(--text-sm); overflow-wrap: anywhere; }
.reader .beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 8px 24px; }
.reader h4 { margin: 0 0 4px; font-size: var(--text-sm); font-weight: 600; }
.reader ol { list-style: none; margin: 0; padding: 0; font-size: var(--text-sm); min-height: 3rem; }
.reader li { display: grid; grid-template-columns: 7rem 1fr 3.4rem; gap: 8px; align-items: center; margin: 2px 0;
  text-align: right; font-variant-numeric: tabular-nums; }
.reader li > :first-child { text-align: left; padding: 1px 6px; justify-self: start; }
.reader li > i { height: 8px; border-radius: 4px; background: var(--color-accent); }
"""
"""The looks, for the page's style sheet."""
