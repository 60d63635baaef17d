// The page: what is typed and set becomes the state, and whatever the state shows is asked of the painter.

import { Painter, paint } from "./painter.js";
import { fileName, fromHash, isSeed, pythonLines, randomSeed, toHash } from "./sharing.js";
import { exchanged, pieces } from "./words.js";

const FULL_VARIETY = 3; // at the slider's end nothing is sampled again
const PAUSE = 500; // milliseconds without typing, after which the other pictures are made, too
const URGENT = { now: 4, before: 3, middle: 3, end: 2, grid: 1 };
const GRID = 8;

const $ = (id) => document.getElementById(id);
const canvas = (id) => $(id).querySelector("canvas");
const caption = (id) => $(id).querySelector("figcaption");

const state = { prompt: "", seed: 0, truncation: null, firstInGrid: 1, before: null, between: "prompt" };
const others = { prompt: "", seed: "" }; // the other end of the slider, for each of its kinds
let config = null;
let painter = null;
let pause = null;

// The state and what is shown of it

function request(changes = {}) {
  const { prompt, seed, truncation } = state;
  return { prompt, seed, truncation, ...changes };
}

/** Take over changes of the state, and show them: the image at once, the rest after a pause. */
function change(changes, { compare = false } = {}) {
  state.before = compare ? { request: request(), ...compare } : null;
  Object.assign(state, changes);
  if ("seed" in changes) state.firstInGrid = state.seed + 1;
  showControls();
  showImage();
  showBefore();
  clearTimeout(pause);
  pause = setTimeout(showRest, PAUSE);
}

function showControls() {
  if ($("prompt").value !== state.prompt) $("prompt").value = state.prompt;
  if (document.activeElement !== $("seed") || !isSeed($("seed").value)) $("seed").value = state.seed;
  $("truncation").value = state.truncation ?? FULL_VARIETY;
  const words = state.truncation === null ? "full" : `typical images, truncation ${state.truncation}`;
  $("truncation-is").textContent = words;
  $("truncation").setAttribute("aria-valuetext", words);
  $("python").textContent = pythonLines(request(), config);
  showChips();
}

function showImage() {
  const wanted = request();
  painter.want("now", URGENT.now, wanted, (image) => {
    paint(canvas("now"), image, described(wanted));
    $("cut").hidden = !image.cut;
    $("download").disabled = false;
    document.body.dataset.shown = toHash(wanted);
    $("speed").textContent = `This image took ${Math.round(image.milliseconds)} ms.`;
    // Said when typing pauses, not at every letter.
    if (toHash(wanted) === toHash(request())) announce(`Shown: ${described(wanted)}`);
  });
}

function described({ prompt, seed }) {
  return `${prompt.trim() || "an empty text"}, seed ${seed}`;
}

let announcement = null;
function announce(text) {
  clearTimeout(announcement);
  announcement = setTimeout(() => ($("status").textContent = text), PAUSE);
}

function showBefore() {
  const { before } = state;
  $("before").hidden = $("hide-before").hidden = !before;
  caption("now").textContent = before ? `now: ${before.after}` : "";
  if (!before) return painter.forget("before");
  caption("before").textContent = `before: ${before.before}`;
  painter.want("before", URGENT.before, before.request, (image) =>
    paint(canvas("before"), image, `before the exchange: ${described(before.request)}`),
  );
}

function showRest() {
  history.replaceState(null, "", toHash(request()));
  showGrid();
  showBetween();
}

// Words to exchange

function chip(words, selected, name, choose) {
  const label = document.createElement("span");
  label.className = `chip ${name}`;
  const select = document.createElement("select");
  for (const word of words) select.add(new Option(word, word, false, word === selected));
  select.onchange = () => choose(select.value);
  label.append(select);
  return [label, select];
}

function showChips() {
  const key = JSON.stringify(state.prompt);
  if ($("chips").dataset.of === key) return;
  $("chips").dataset.of = key;
  $("chips").replaceChildren();
  const parts = pieces(state.prompt, config.kinds);
  for (const [index, { text, kind, others: words }] of parts.entries()) {
    if (!kind) {
      const rest = document.createElement("span");
      rest.textContent = text.trim();
      if (text.trim()) $("chips").append(rest);
      continue;
    }
    const word = text.toLowerCase();
    const [label, select] = chip(words, word, kind, (other) => swap(parts, index, other, select));
    if (kind === "colour") label.classList.add(`colour-${word}`);
    select.setAttribute("aria-label", `${kind} ${word}, exchange for`);
    $("chips").append(label);
  }
  for (const { name, words, added } of config.kinds) {
    if (!added || !state.prompt.trim() || parts.some(({ kind }) => kind === name)) continue;
    const [label, select] = chip([`+ ${name}`, ...words], null, "add", (phrase) => {
      const prompt = `${state.prompt.trim().replace(/[,.]$/, "")}, ${phrase}`;
      change({ prompt }, { compare: { before: `not ${phrase}`, after: phrase } });
    });
    select.setAttribute("aria-label", `add a ${name}`);
    $("chips").append(label);
  }
}

function swap(parts, index, word, select) {
  const place = [...$("chips").querySelectorAll("select")].indexOf(select);
  change({ prompt: exchanged(parts, index, word) }, { compare: { before: parts[index].text, after: word } });
  $("chips").querySelectorAll("select")[place]?.focus(); // the chips were made anew
}

// Eight other seeds

function makeGrid() {
  for (let i = 0; i < GRID; i++) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("canvas"), document.createElement("span"));
    button.onclick = () => {
      const first = state.firstInGrid;
      change({ seed: first + i });
      state.firstInGrid = first; // they stay where they are
      scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    };
    $("grid").append(button);
  }
}

function showGrid() {
  [...$("grid").children].forEach((button, i) => {
    const seed = state.firstInGrid + i;
    button.lastChild.textContent = seed;
    button.setAttribute("aria-label", `show seed ${seed}`);
    painter.want(`grid ${i}`, URGENT.grid, request({ seed }), (image) => paint(button.firstChild, image, ""));
  });
}

// Between two texts or seeds

function between() {
  const to = others[state.between];
  const mix = Number($("mix").value);
  if (state.between === "seed") return request({ toSeed: isSeed(to) ? Number(to) : state.seed, mix });
  return request({ toPrompt: to, mix });
}

function showBetween() {
  const wanted = between();
  const to = { ...request(), prompt: wanted.toPrompt ?? wanted.prompt, seed: wanted.toSeed ?? wanted.seed };
  const label = (end) => (state.between === "seed" ? `seed ${end.seed}` : end.prompt);
  for (const [id, end] of [["from-end", request()], ["to-end", to]]) {
    painter.want(id, URGENT.end, end, (image) => paint(canvas(id), image, described(end)));
    caption(id).textContent = label(end);
  }
  showMiddle();
}

function showMiddle() {
  const wanted = between();
  const percent = `${Math.round(100 * wanted.mix)} %`;
  $("mix").setAttribute("aria-valuetext", `${percent} of the way`);
  $("python-between").textContent = pythonLines(wanted, config);
  painter.want("middle", URGENT.middle, wanted, (image) => {
    paint(canvas("middle"), image, `${percent} of the way from the first to the other`);
    caption("middle").textContent = percent;
    document.body.dataset.middle = wanted.mix;
  });
}

function chooseBetween(kind) {
  state.between = kind;
  $("to").value = others[kind];
  showBetween();
}

// Wiring

function listen() {
  $("prompt").oninput = () => change({ prompt: $("prompt").value });
  $("seed").oninput = () => {
    const fine = isSeed($("seed").value);
    $("seed").setCustomValidity(fine ? "" : "a whole number from 0 to 4294967295");
    if (fine) change({ seed: Number($("seed").value) });
    else $("seed").reportValidity();
  };
  $("seed").onblur = () => showControls();
  $("another").onclick = () => change({ seed: randomSeed() });
  $("truncation").oninput = () => {
    const value = Number($("truncation").value);
    change({ truncation: value === FULL_VARIETY ? null : value });
  };
  $("hide-before").onclick = () => change({});
  $("more").onclick = () => {
    state.firstInGrid += GRID;
    showGrid();
  };
  $("to").oninput = () => {
    others[state.between] = $("to").value;
    showBetween();
  };
  $("mix").oninput = showMiddle;
  for (const radio of document.getElementsByName("between")) radio.onchange = () => chooseBetween(radio.value);
  $("link").onclick = () => copy(new URL(toHash(request()), location).href, "The link is copied.");
  $("copy-python").onclick = () => copy($("python").textContent, "The lines are copied.");
  $("download").onclick = download;
  addEventListener("hashchange", () => change({ truncation: null, ...fromHash(location.hash) }));
}

async function copy(text, message) {
  try {
    await navigator.clipboard.writeText(text);
    announce(message);
  } catch {
    prompt("This browser does not let the page copy; here it is:", text);
  }
}

function download() {
  canvas("now").image.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = fileName(state);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

function trouble(message) {
  $("trouble").textContent = message;
  $("trouble").hidden = false;
  $("loading").hidden = true;
}

/** Why this browser cannot run the page, or null. */
function missing() {
  if (typeof WebAssembly !== "object") {
    return (
      "This page makes its images with WebAssembly, and this browser has it switched off (some do in their strictest " +
      "security setting). Allow it for this page, or open the page in another browser."
    );
  }
  if (typeof DecompressionStream === "undefined" || typeof Worker === "undefined") {
    return "This browser is too old for the page. Chrome, Edge, Firefox and Safari work from their versions of 2023 on.";
  }
  return null;
}

async function start() {
  const problem = missing();
  if (problem) return trouble(problem);
  try {
    config = await (await fetch("model/model.json")).json();
  } catch {
    return trouble("The model's files did not arrive. Is the page opened from a web server? Load it again.");
  }
  painter = new Painter({
    progress: ({ loaded, total }) => {
      $("progress").value = loaded / total;
      if (loaded === total) $("loading").querySelector("label").textContent = "Starting the model";
    },
    ready: () => {
      $("loading").hidden = true;
      document.body.dataset.ready = Math.round(performance.now());
    },
    failed: (message) => trouble(`The model cannot run in this browser: ${message}. Loading the page again may help.`),
  });
  makeGrid();
  listen();
  for (const text of config.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.onclick = () => change({ prompt: text });
    $("examples").append(button);
    $("examples").hidden = false;
  }
  others.prompt = config.examples[1] ?? "";
  others.seed = "1";
  $("to").value = others.prompt;
  change({ prompt: $("prompt").value || config.examples[0] || "", ...fromHash(location.hash) });
}

start();
