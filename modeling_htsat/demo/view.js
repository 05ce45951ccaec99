// The picture of a recording, and what was found in it. Gradio runs this file once for each of the two components, with
// `element` (where it stands), `props.value` (what Python sent) and `watch` (tells when that has changed).
// Seconds run along x. Panels from top to bottom: ruler, waveform, spectrogram, presence map, event bars.

const bus = (window.htsatBus ??= new EventTarget());
const tell = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));
const hear = (name, answer) => bus.addEventListener(name, (message) => answer(message.detail));

const LOOKS = {
  light: { ink: "#0f172a", muted: "#5b677a", line: "#d5dbe4", wave: "#2563a8", none: "#eef1f5", head: "#d5430b",
           scores: [[0, 255, 255, 255], [0.4, 86, 180, 233], [0.75, 0, 114, 178], [1, 0, 51, 85]] },
  dark: { ink: "#e7ecf4", muted: "#9aa7ba", line: "#3a475c", wave: "#7cb8ee", none: "#263449", head: "#ff9d5c",
          scores: [[0, 24, 33, 49], [0.4, 34, 92, 140], [0.75, 74, 163, 226], [1, 222, 242, 255]] },
};
// Of even lightness, and of no hue that means something in the other panels.
const DECIBELS = [[0, 5, 4, 16], [0.25, 74, 21, 104], [0.5, 160, 48, 115], [0.75, 235, 105, 92], [0.9, 253, 186, 118],
                  [1, 252, 243, 195]];
const RULER = 24, CAPTION = 20, WAVE = 66, SPECTROGRAM = 132, PRESENCE_ROW = 18, BAR_ROW = 29, BAR = 24;
const MAX_PRESENCE_ROWS = 10, MAX_BUTTONS = 400, MAX_TABLE_ROWS = 500, SHORTEST_SPAN = 0.2, LIVE_SPAN = 30, NARROW = 620;
const WHEEL_PIXELS = [1, 25, 500]; // of one unit of a wheel that counts pixels, lines or pages

// ── small things ─────────────────────────────────────────────────────────────────────────────────────────────────────

function bytesOf(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index++) bytes[index] = binary.charCodeAt(index);
  return bytes;
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function colours(stops) {
  return Array.from({ length: 256 }, (_, level) => {
    const part = level / 255, above = Math.max(1, stops.findIndex((stop) => stop[0] >= part));
    const [low, high] = [stops[above - 1], stops[above]], mix = (part - low[0]) / (high[0] - low[0]);
    return [1, 2, 3].map((channel) => Math.round(low[channel] + mix * (high[channel] - low[channel])));
  });
}

const css = (colour) => "rgb(" + colour.join(",") + ")";
const isDarkColour = ([red, green, blue]) => 0.299 * red + 0.587 * green + 0.114 * blue < 140;
const isDarkPage = () => document.body.classList.contains("dark");

function clock(seconds, digits = 1) {
  const whole = Math.max(0, seconds);
  if (whole < 60) return whole.toFixed(digits) + " s";
  const minutes = Math.floor(whole / 60), rest = (whole - 60 * minutes).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  if (minutes < 60) return minutes + ":" + rest;
  return Math.floor(minutes / 60) + ":" + String(minutes % 60).padStart(2, "0") + ":" + rest;
}

const spoken = (event) =>
  event.label + ", " + event.onset.toFixed(1) + " to " + event.offset.toFixed(1) + " seconds, score " +
  event.score.toFixed(2) + (event.provisional ? ", may still change" : "");

function firstAfter(edges, seconds) {
  let low = 0, high = edges.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (edges[middle] <= seconds) low = middle + 1;
    else high = middle;
  }
  return low;
}

// ── the picture ──────────────────────────────────────────────────────────────────────────────────────────────────────

function showView(element, props, watch) {
  const root = element.querySelector(".htsat-view");
  const audio = new Audio();
  const state = { sound: null, events: [], from: 0, to: 1, playing: null, pointer: null, drawing: false, rows: [] };
  const title = make("p", { class: "htsat-title" });
  const button = (name, label, act) => make("button", { type: "button", "aria-label": label, title: label, onclick: act }, name);
  const play = button("▶", "Play what is shown", () => (state.playing ? stop() : start(state.from, state.to)));
  const tools = make("div", { class: "htsat-tools", role: "toolbar", "aria-label": "Time axis" },
    play, button("−", "Zoom out", () => zoom(2)), button("+", "Zoom in", () => zoom(0.5)),
    button("Whole", "Show the whole recording", () => show(0, length())));
  const canvas = make("canvas", { "aria-hidden": "true" });
  const bars = make("div", { class: "htsat-bars", role: "group", "aria-label": "Events" });
  const tip = make("div", { class: "htsat-tip", hidden: "" });
  const stage = make("div", { class: "htsat-stage", tabindex: "0", role: "group",
    "aria-label": "Picture of the recording: plus and minus zoom, arrows move, 0 shows all, space plays" }, canvas, bars, tip);
  const said = make("p", { class: "htsat-quiet", "aria-live": "polite" });
  const empty = make("div", { class: "htsat-empty" }, make("div", { class: "htsat-art", "aria-hidden": "true" }),
    make("p", {}, "Nothing heard yet."), make("p", {}, "Waveform, spectrogram and events appear here."));
  const full = make("div", { class: "htsat-full", hidden: "" }, make("div", { class: "htsat-bar" }, title, tools), stage, said);
  root.append(empty, full);
  for (let index = 0; index < 48; index++) {
    const height = 12 + 70 * Math.abs(Math.sin(index * 0.55) * Math.cos(index * 0.17));
    empty.firstChild.append(make("i", { style: "height:" + height.toFixed(0) + "%" }));
  }

  const length = () => Math.max(state.sound?.seconds ?? 0, SHORTEST_SPAN);
  const gutter = () => (stage.clientWidth < NARROW ? 78 : 128);
  const width = () => Math.max(1, stage.clientWidth - gutter());
  const xOf = (seconds) => gutter() + ((seconds - state.from) / (state.to - state.from)) * width();
  const secondsAt = (x) => state.from + ((x - gutter()) / width()) * (state.to - state.from);
  const xWithin = (touch) => touch.clientX - stage.getBoundingClientRect().left; // offsetX is that within an event bar

  // ── what came ──

  function take() {
    const sound = props.value || null;
    stop();
    const isNext = Boolean(sound?.live && state.sound?.live);
    const wasFollowing = isNext && state.isFollowing;
    state.sound = sound && unpack(sound);
    empty.hidden = Boolean(sound);
    full.hidden = !sound;
    if (!sound) return;
    play.hidden = !sound.sound;
    audio.src = sound.sound ? sound.sound.url : "";
    title.textContent = sound.live ? "Live, " + clock(sound.seconds, 0) : sound.name + ", " + clock(sound.seconds);
    if (!isNext) state.events = [];
    if (!sound.live) show(0, length());
    else if (!isNext || wasFollowing) follow();
    draw();
  }

  function follow() {
    state.isFollowing = true;
    state.to = Math.max(LIVE_SPAN, length());
    state.from = state.to - LIVE_SPAN;
  }

  function unpack(sound) {
    const unpacked = { ...sound, envelope: { ...sound.envelope, levels: bytesOf(sound.envelope.levels) } };
    if (sound.spectrogram) unpacked.spectrogram = { ...sound.spectrogram, levels: bytesOf(sound.spectrogram.levels) };
    if (sound.presence) {
      const edges = new Float32Array(bytesOf(sound.presence.edges).buffer);
      unpacked.presence = { ...sound.presence, edges, levels: bytesOf(sound.presence.levels) };
    }
    return unpacked;
  }

  function takeEvents(found) {
    state.events = found?.events ?? [];
    const known = state.sound?.presence?.labels ?? [];
    const place = (label) => (known.includes(label) ? known.indexOf(label) : known.length);
    state.rows = [...new Set(state.events.map((event) => event.label))].sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
    draw();
  }

  // ── zoom and pan ──

  function show(from, to) {
    const most = state.sound?.live ? Math.max(LIVE_SPAN, length()) : length();
    const span = Math.min(Math.max(to - from, Math.min(SHORTEST_SPAN, most)), most);
    state.isFollowing = false;
    state.from = Math.min(Math.max(0, from), most - span);
    state.to = state.from + span;
    stage.dataset.from = state.from.toFixed(3);
    stage.dataset.to = state.to.toFixed(3);
    said.textContent = "Shown: " + state.from.toFixed(1) + " to " + state.to.toFixed(1) + " seconds";
    draw();
  }

  function zoom(factor, around = (state.from + state.to) / 2) {
    show(around - (around - state.from) * factor, around + (state.to - around) * factor);
  }

  const pan = (seconds) => show(state.from + seconds, state.to + seconds);

  stage.addEventListener("wheel", (turn) => {
    const isSideways = turn.shiftKey || Math.abs(turn.deltaX) > Math.abs(turn.deltaY);
    const isWhole = state.to - state.from >= length() - 1e-6;
    if (isWhole && (isSideways || turn.deltaY > 0)) return; // the page may scroll
    turn.preventDefault();
    const amount = (isSideways ? turn.deltaX || turn.deltaY : turn.deltaY) * WHEEL_PIXELS[turn.deltaMode];
    if (isSideways) pan((amount / width()) * (state.to - state.from));
    else zoom(Math.exp(Math.sign(amount) * Math.min(Math.abs(amount), 100) * 0.003), secondsAt(xWithin(turn)));
  }, { passive: false });

  stage.addEventListener("keydown", (press) => {
    if (press.ctrlKey || press.metaKey || press.altKey) return;
    const step = (state.to - state.from) / 5;
    const acts = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => show(0, length()),
                   Home: () => pan(-length()), End: () => pan(length()), ArrowLeft: () => pan(-step), ArrowRight: () => pan(step) };
    if (press.target === stage) acts[" "] = () => (state.playing ? stop() : start(state.from, state.to));
    if (!acts[press.key]) return;
    press.preventDefault();
    acts[press.key]();
  });

  const fingers = new Map();
  let moved = 0;
  stage.addEventListener("pointerdown", (touch) => {
    if (touch.target !== canvas) return;
    fingers.set(touch.pointerId, touch);
    moved = 0;
    canvas.setPointerCapture(touch.pointerId);
  });
  stage.addEventListener("pointermove", (touch) => {
    const before = fingers.get(touch.pointerId);
    if (!before) return point(touch);
    const [distance, middle] = spread();
    fingers.set(touch.pointerId, touch);
    const [farther, nextMiddle] = spread();
    moved += Math.abs(touch.clientX - before.clientX);
    if (fingers.size > 1 && distance > 8) zoom(distance / Math.max(farther, 8), secondsAt(nextMiddle));
    pan(((middle - nextMiddle) / width()) * (state.to - state.from));
  });
  const lift = (touch) => {
    if (!fingers.delete(touch.pointerId) || fingers.size || moved > 6 || touch.type === "pointercancel") return;
    if (xWithin(touch) >= gutter() && state.sound?.sound) start(secondsAt(xWithin(touch)), length());
  };
  stage.addEventListener("pointerup", lift);
  stage.addEventListener("pointercancel", lift);
  stage.addEventListener("pointerleave", () => { state.pointer = null; tip.hidden = true; draw(); });

  function spread() {
    const places = [...fingers.values()].map(xWithin);
    return [Math.max(...places) - Math.min(...places), (Math.max(...places) + Math.min(...places)) / 2];
  }

  // ── sound ──

  function start(from, to) {
    if (!state.sound?.sound) return;
    stop();
    audio.currentTime = from;
    state.playing = [from, to];
    stage.dataset.playing = from.toFixed(2) + "-" + to.toFixed(2);
    play.textContent = "■";
    play.setAttribute("aria-label", "Stop");
    audio.play().then(() => { tick(); waitForEnd(); }, (reason) => { said.textContent = "The browser cannot play this: " + reason.message; stop(); });
  }

  function tick() {
    if (!state.playing) return;
    if (audio.currentTime >= state.playing[1] || audio.ended) return stop();
    draw();
    requestAnimationFrame(tick);
  }

  // By a clock as well: frames come late where a machine is busy, and not at all in a tab that is behind another.
  function waitForEnd() {
    clearTimeout(state.clock);
    if (!state.playing) return;
    const left = state.playing[1] - audio.currentTime;
    if (left <= 0 || audio.ended) return stop();
    state.clock = setTimeout(waitForEnd, Math.max(5, 1000 * left));
  }

  function stop() {
    if (!state.playing) return;
    audio.pause();
    stage.dataset.stopped = audio.currentTime.toFixed(2);
    delete stage.dataset.playing;
    state.playing = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Play what is shown");
    draw();
  }

  // ── hover ──

  function point(touch) {
    const x = xWithin(touch), y = touch.clientY - stage.getBoundingClientRect().top;
    if (!state.sound || x < gutter() || touch.target !== canvas) { state.pointer = null; tip.hidden = true; return draw(); }
    state.pointer = x;
    write(x, y, linesAt(Math.min(secondsAt(x), length()), y));
    draw();
  }

  function linesAt(seconds, y) {
    const { presence, spectrogram } = state.sound, places = panels(), lines = [clock(seconds, 2)];
    if (spectrogram && y >= places.spectrogram && y < places.spectrogram + SPECTROGRAM) lines[0] += ", " + hertzAt(spectrogram, y - places.spectrogram);
    if (!presence) return lines;
    const column = Math.min(presence.columns, Math.max(1, firstAfter(presence.edges, seconds))) - 1;
    const score = (row) => presence.levels[row * presence.columns + column] / 255;
    const row = Math.floor((y - places.presence) / PRESENCE_ROW);
    const rows = y >= places.presence && row < places.presenceRows ? [row] : best(presence.labels.length, score);
    return lines.concat(rows.map((each) => score(each).toFixed(2) + "  " + presence.labels[each]));
  }

  const best = (count, score) => Array.from({ length: count }, (_, row) => row).sort((a, b) => score(b) - score(a)).slice(0, 3);

  function hertzAt(spectrogram, y) {
    const band = (1 - y / SPECTROGRAM) * spectrogram.mels, marks = spectrogram.marks;
    const above = marks.findIndex((mark) => mark.band >= band);
    if (above < 0) return "above " + marks.at(-1).hertz / 1000 + " kHz";
    if (above === 0) return "below " + marks[0].hertz / 1000 + " kHz";
    const [low, high] = [marks[above - 1], marks[above]], part = (band - low.band) / (high.band - low.band);
    return ((low.hertz + part * (high.hertz - low.hertz)) / 1000).toFixed(2) + " kHz";
  }

  function write(x, y, lines) {
    tip.replaceChildren(...lines.map((line) => make("div", {}, line)));
    tip.hidden = false;
    const left = Math.min(x + 14, stage.clientWidth - tip.offsetWidth - 4);
    tip.style.transform = "translate(" + Math.max(4, left) + "px," + Math.max(2, y - tip.offsetHeight - 8) + "px)";
  }

  // ── drawing ──

  function panels() {
    const presenceRows = state.sound?.presence ? Math.min(MAX_PRESENCE_ROWS, state.sound.presence.labels.length) : 0;
    const wave = RULER + CAPTION, places = { wave, presenceRows };
    let bottom = wave + WAVE;
    if (state.sound?.spectrogram) { places.spectrogram = bottom + CAPTION; bottom = places.spectrogram + SPECTROGRAM; }
    if (presenceRows) { places.presence = bottom + CAPTION; bottom = places.presence + presenceRows * PRESENCE_ROW; }
    places.bars = bottom + CAPTION;
    places.bottom = places.bars + Math.max(1, state.rows.length) * BAR_ROW + 4;
    return places;
  }

  function draw() {
    if (state.drawing) return;
    state.drawing = true;
    requestAnimationFrame(() => { state.drawing = false; if (state.sound && stage.clientWidth) paint(); });
  }

  function paint() {
    const look = LOOKS[isDarkPage() ? "dark" : "light"], places = panels(), scale = window.devicePixelRatio || 1;
    const size = [stage.clientWidth, places.bottom];
    stage.style.height = size[1] + "px";
    canvas.style.height = size[1] + "px";
    canvas.width = Math.round(size[0] * scale);
    canvas.height = Math.round(size[1] * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "12px " + getComputedStyle(stage).fontFamily;
    const scores = colours(look.scores);
    paintRuler(pen, look, places);
    paintWave(pen, look, places, scale);
    if (places.spectrogram) paintSpectrogram(pen, look, places, scale);
    if (places.presence) paintPresence(pen, look, places, scale, scores);
    paintRows(pen, look, places, scores);
    paintHeads(pen, look, places);
    placeButtons(places, scores, look);
  }

  function paintRuler(pen, look, places) {
    const steps = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];
    const span = state.to - state.from, step = steps.find((each) => span / each <= Math.max(3, width() / 84)) ?? 7200;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let index = Math.ceil(state.from / step - 1e-9); index * step <= state.to + 1e-9; index++) {
      const x = xOf(index * step), text = clock(index * step, step < 0.1 ? 2 : step < 1 ? 1 : 0);
      const half = pen.measureText(text).width / 2;
      pen.fillStyle = look.line;
      pen.fillRect(x, RULER - 5, 1, places.bottom - RULER);
      pen.fillStyle = look.muted;
      pen.fillText(text, Math.min(Math.max(x, gutter() + half), stage.clientWidth - half - 1), RULER / 2);
    }
  }

  function caption(pen, look, text, y) {
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    pen.font = "600 11px " + getComputedStyle(stage).fontFamily;
    const room = pen.measureText(text).width + 8;
    pen.fillStyle = getComputedStyle(root).backgroundColor;
    pen.fillRect(gutter(), y - CAPTION + 2, room, CAPTION - 4);
    pen.fillStyle = look.muted;
    pen.fillText(text, gutter() + 1, y - CAPTION / 2);
    pen.font = "12px " + getComputedStyle(stage).fontFamily;
  }

  function paintWave(pen, look, places, scale) {
    const { columns, end, levels } = state.sound.envelope, seconds = end / columns, middle = places.wave + WAVE / 2;
    caption(pen, look, "Waveform", places.wave);
    pen.fillStyle = look.none;
    pen.fillRect(gutter(), places.wave, width(), WAVE);
    pen.fillStyle = look.wave;
    for (let pixel = 0; pixel < width() * scale; pixel++) {
      const x = gutter() + pixel / scale, first = Math.floor(secondsAt(x) / seconds);
      if (first >= columns) break;
      const last = Math.min(columns, Math.max(first + 1, Math.ceil(secondsAt(x + 1 / scale) / seconds)));
      let low = 255, high = 0;
      for (let column = first; column < last; column++) {
        low = Math.min(low, levels[column]);
        high = Math.max(high, levels[columns + column]);
      }
      const top = middle - ((high - 128) / 127) * (WAVE / 2 - 3), bottom = middle - ((low - 128) / 127) * (WAVE / 2 - 3);
      pen.fillRect(x, Math.min(top, middle - 0.4), 1 / scale, Math.max(bottom - top, 0.8));
    }
  }

  // An image of one pixel for each device pixel in x and one for each row in y: of several columns, the maximum shows.
  function paintLevels(pen, rows, height, top, scale, columns, columnAt, levels, palette) {
    const pixels = Math.max(1, Math.floor(width() * scale)), image = new ImageData(pixels, rows);
    for (let pixel = 0; pixel < pixels; pixel++) {
      const x = gutter() + pixel / scale, first = columnAt(secondsAt(x));
      if (first >= columns) break;
      const last = Math.min(columns, Math.max(first + 1, columnAt(secondsAt(x + 1 / scale))));
      for (let row = 0; row < rows; row++) {
        let level = 0;
        for (let column = first; column < last; column++) level = Math.max(level, levels[row * columns + column]);
        image.data.set([...palette[level], 255], 4 * (row * pixels + pixel));
      }
    }
    const sheet = make("canvas", { width: pixels, height: rows });
    sheet.getContext("2d").putImageData(image, 0, 0);
    return sheet;
  }

  function paintSpectrogram(pen, look, places, scale) {
    const { columns, end, mels, levels, marks } = state.sound.spectrogram, seconds = end / columns;
    caption(pen, look, "Spectrogram", places.spectrogram);
    pen.fillStyle = look.none;
    pen.fillRect(gutter(), places.spectrogram, width(), SPECTROGRAM);
    const columnAt = (time) => Math.max(0, Math.floor(time / seconds));
    const sheet = paintLevels(pen, mels, SPECTROGRAM, places.spectrogram, scale, columns, columnAt, levels, palettes.decibels);
    pen.save();
    pen.translate(0, places.spectrogram + SPECTROGRAM);
    pen.scale(1, -1); // the lowest band below
    pen.drawImage(sheet, gutter(), 0, width(), SPECTROGRAM);
    pen.restore();
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    pen.fillStyle = look.muted;
    let below = Infinity;
    for (const mark of marks) {
      const y = places.spectrogram + SPECTROGRAM * (1 - mark.band / mels);
      if (below - y < 15 || y > places.spectrogram + SPECTROGRAM - 4) continue;
      pen.fillText(mark.hertz / 1000 + " kHz", gutter() - 8, y);
      below = y;
    }
  }

  function paintPresence(pen, look, places, scale, scores) {
    const { columns, edges, levels, labels } = state.sound.presence, rows = places.presenceRows;
    const part = rows < labels.length ? " of the " + rows + " strongest" : "";
    caption(pen, look, "Presence" + part, places.presence);
    const columnAt = (time) => Math.max(0, firstAfter(edges, time) - 1);
    const sheet = paintLevels(pen, rows, rows * PRESENCE_ROW, places.presence, scale, columns, columnAt, levels, scores);
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = look.none;
    pen.fillRect(gutter(), places.presence, width(), rows * PRESENCE_ROW);
    pen.drawImage(sheet, gutter(), places.presence, width(), rows * PRESENCE_ROW);
    pen.imageSmoothingEnabled = true;
    for (let row = 0; row < rows; row++) {
      const y = places.presence + row * PRESENCE_ROW;
      pen.fillStyle = look.line;
      pen.fillRect(gutter(), y, width(), 1);
      name(pen, look, labels[row], y + PRESENCE_ROW / 2, state.rows.includes(labels[row]));
    }
  }

  function name(pen, look, label, y, isStrong) {
    pen.textBaseline = "middle";
    let text = label;
    while (text.length > 4 && pen.measureText(text).width > gutter() - 10) text = text.slice(0, -2).trimEnd() + "…";
    pen.textAlign = "right";
    pen.fillStyle = isStrong ? look.ink : look.muted;
    pen.fillText(text, gutter() - 8, y);
  }

  function paintRows(pen, look, places, scores) {
    caption(pen, look, state.events.length ? "Events" : "Events: none above the threshold", places.bars);
    state.rows.forEach((label, row) => {
      const y = places.bars + row * BAR_ROW;
      pen.fillStyle = look.line;
      pen.fillRect(gutter(), y, width(), 1);
      name(pen, look, label, y + BAR_ROW / 2, true);
    });
    if (shownEvents().length <= MAX_BUTTONS) return; // else those without a button are drawn here
    for (const event of shownEvents()) {
      const left = Math.max(gutter(), xOf(event.onset)), top = places.bars + state.rows.indexOf(event.label) * BAR_ROW + 3;
      pen.fillStyle = css(colourOf(event, scores));
      pen.fillRect(left, top, Math.max(2, Math.min(stage.clientWidth, xOf(event.offset)) - left - 1), BAR);
    }
  }

  function paintHeads(pen, look, places) {
    pen.fillStyle = look.muted;
    if (state.pointer !== null) pen.fillRect(state.pointer, RULER - 5, 1, places.bottom - RULER + 5);
    const x = xOf(audio.currentTime);
    pen.fillStyle = look.head;
    if (state.playing && x >= gutter()) pen.fillRect(x - 1, RULER - 8, 2, places.bottom - RULER + 8);
  }

  const palettes = { decibels: colours(DECIBELS) };

  const keyOf = (event) => event.onset + " " + event.label; // events of one class never begin together
  const shownEvents = () => state.events.filter((event) => event.offset > state.from && event.onset < state.to);
  const colourOf = (event, scores) => scores[Math.round(255 * Math.max(0.3, event.score))];

  function placeButtons(places, scores, look) {
    const shown = shownEvents(), strongest = [...shown].sort((a, b) => b.score - a.score).slice(0, MAX_BUTTONS);
    const keys = new Set(strongest.map(keyOf)), buttons = keepButtons(keys);
    let next = bars.firstChild;
    for (const event of shown.filter((each) => keys.has(keyOf(each)))) { // in order of time
      const node = buttons.get(keyOf(event)) ?? newButton();
      if (node === next) next = node.nextSibling;
      else bars.insertBefore(node, next); // a new one: those that stay are not moved, or they would lose the focus
      placeButton(node, event, places, scores, look);
    }
  }

  // Decoded anew or heard further, an event keeps its button, and the button its focus.
  function keepButtons(keys) {
    const buttons = new Map();
    for (const node of [...bars.children]) {
      const key = keyOf(node.event);
      if (keys.has(key)) { buttons.set(key, node); continue; }
      if (node === document.activeElement) stage.focus({ preventScroll: true }); // or it would go to the top of the page
      node.remove();
    }
    return buttons;
  }

  function newButton() {
    const node = make("button", { type: "button", class: "htsat-event" });
    const tellOf = () => {
      const box = node.getBoundingClientRect(), frame = stage.getBoundingClientRect();
      write(box.left - frame.left, box.top - frame.top, [node.event.label, clock(node.event.onset, 2) + " to " + clock(node.event.offset, 2), "score " + node.event.score.toFixed(2)]);
    };
    node.addEventListener("click", () => start(node.event.onset, node.event.offset));
    node.addEventListener("pointerenter", tellOf);
    node.addEventListener("focus", tellOf);
    node.addEventListener("blur", () => { tip.hidden = true; });
    node.addEventListener("pointerleave", () => { tip.hidden = true; });
    return node;
  }

  function placeButton(node, event, places, scores, look) {
    const left = Math.max(gutter(), xOf(event.onset)), right = Math.min(stage.clientWidth, xOf(event.offset));
    const colour = colourOf(event, scores), room = right - left;
    node.event = event;
    node.setAttribute("aria-label", spoken(event));
    node.classList.toggle("htsat-provisional", Boolean(event.provisional));
    node.style.left = left + "px";
    node.style.width = Math.max(4, room - 1) + "px";
    node.style.top = places.bars + state.rows.indexOf(event.label) * BAR_ROW + 3 + "px";
    node.style.background = css(colour);
    node.style.color = isDarkColour(colour) ? "#fff" : "#0b1524";
    const text = room > 34 ? event.score.toFixed(2) : "";
    if (node.textContent !== text) node.textContent = text;
  }

  hear("found", takeEvents);
  hear("play", ({ onset, offset }) => { if (onset < state.from || offset > state.to) pan(onset - (state.from + state.to) / 2); start(onset, offset); });
  new ResizeObserver(draw).observe(stage);
  new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  watch("value", take);
  take();
}

// ── what was found ───────────────────────────────────────────────────────────────────────────────────────────────────

function showFound(element, props, watch) {
  const root = element.querySelector(".htsat-found");
  const said = make("p", { class: "htsat-count", role: "status" });
  const tags = make("ol", { class: "htsat-tags", "aria-label": "Top tags of the whole recording" });
  const tagsTitle = make("h2", {}, "Top tags"), eventsTitle = make("h2", {}, "Events");
  const body = make("tbody");
  const head = ["From", "To", "Sound", "Score"].map((name) => make("th", { scope: "col" }, name));
  const table = make("table", {}, make("caption", { class: "htsat-quiet" }, "Events, in order of time"),
    make("thead", {}, make("tr", {}, ...head, make("th", { scope: "col" }, make("span", { class: "htsat-quiet" }, "Play")))), body);
  const scroll = make("div", { class: "htsat-scroll", tabindex: "0", role: "region", "aria-label": "Table of events" }, table);
  const more = make("p", { class: "htsat-count" });
  root.append(tagsTitle, tags, eventsTitle, said, scroll, more);

  function take() {
    const found = props.value || null;
    root.hidden = !found;
    document.body.classList.toggle("htsat-has-found", Boolean(found));
    tell("found", found);
    if (!found) return;
    tagsTitle.hidden = tags.hidden = !found.tags.length;
    tags.replaceChildren(...found.tags.map(tagRow));
    const classes = new Set(found.events.map((event) => event.label)).size;
    const count = found.events.length, events = count === 1 ? "1 event" : count + " events";
    said.textContent = count ? events + " of " + (classes === 1 ? "1 class" : classes + " classes") : "No event is above the threshold.";
    scroll.hidden = !count;
    body.replaceChildren(...found.events.slice(0, MAX_TABLE_ROWS).map((event) => row(event, !found.live)));
    more.textContent = count > MAX_TABLE_ROWS ? count - MAX_TABLE_ROWS + " more are in the files to save." : "";
  }

  function tagRow({ label, score }) {
    const bar = make("span", { class: "htsat-meter", "aria-hidden": "true" }, make("i", { style: "width:" + (100 * score).toFixed(1) + "%" }));
    return make("li", {}, make("span", { class: "htsat-name" }, label), bar, make("span", { class: "htsat-score" }, score.toFixed(2)));
  }

  function row(event, canPlay) {
    const play = make("button", { type: "button", "aria-label": "Play " + spoken(event), onclick: () => tell("play", event) }, "▶");
    const cells = [clock(event.onset, 2), clock(event.offset, 2), event.label, event.score.toFixed(2)].map((text) => make("td", {}, text));
    return make("tr", event.provisional ? { class: "htsat-provisional" } : {}, ...cells, make("td", {}, canPlay ? play : ""));
  }

  watch("value", take);
  take();
}
