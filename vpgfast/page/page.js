// The page: a lane of spans for every sentence of every video, and the keys and buttons that step through them.

let content = { title: "", about: "", videos: [] };
let current = null; // the span that is chosen: {video, lane, start, end, button, bar, ...}
const found = document.getElementById("found");
const words = () => document.getElementById("words");

/** An element with attributes, properties and children; text is never read as HTML. */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Show other content: what the page was written with, or what the server has answered. */
function render(next) {
  content = next;
  current = null;
  document.getElementById("about").textContent = content.about;
  found.replaceChildren(...content.videos.map(videoCard));
  const some = content.videos.some((video) => video.lanes.some((lane) => lane.spans.length + lane.truth.length));
  for (const id of ["controls", "now"]) document.getElementById(id).hidden = !some;
  document.getElementById("downloads").hidden = content.videos.length === 0;
  shown = content.videos.find((video) => video.src && video.src === shown?.src) ?? shown; // it may be playing
  if (content.videos.length) {
    const first = spansOf(lanes()[0])[0];
    if (first && player.paused) select(first);
    else if (first) mark(first);
    else show(content.videos[0]);
  } else if (!shown) player.hidden = true;
}

function videoCard(video) {
  const rows = video.lanes.map((lane, number) => laneRow(video, lane, video.lanes.length > 1 ? number + 1 : null));
  video.card = make(
    "article",
    { class: "video", "aria-label": video.name },
    make(
      "header",
      {},
      make("h2", {}, video.name),
      make("span", { class: "faint numbers" }, clock(video.duration)),
      video.score === null ? null : make("span", { class: "faint numbers" }, `score ${video.score.toPrecision(3)}`),
    ),
    video.missing ? make("p", { class: "without" }, video.missing) : null,
    make("ol", { class: "lanes" }, ...rows),
    axis(video.duration),
  );
  return video.card;
}

function laneRow(video, lane, number) {
  const spans = [
    ...lane.truth.map((span) => ({ ...span, kind: "true" })),
    ...lane.spans.map((span, place) => ({ ...span, kind: "found", rank: place + 1 })),
  ].map((span) => Object.assign(span, { video, lane }));
  const heights = rowsOf(spans);
  const track = make("div", { class: "track" }, lane.curve ? curve(lane.curve) : null);
  const height = 9 + 15 * (Math.max(...heights, lane.curve ? 1 : 0) + 1);
  track.style.height = `${height}px`;
  spans.forEach((span, place) => {
    span.bar = make("div", { class: `bar ${kindOf(span)}` });
    span.bar.style.left = `${(100 * span.start) / video.duration}%`;
    span.bar.style.width = `${(100 * (span.end - span.start)) / video.duration}%`;
    span.bar.style.bottom = `${5 + 15 * (Math.max(...heights) - heights[place])}px`;
    span.bar.addEventListener("click", (event) => {
      event.stopPropagation();
      choose(span);
    });
    track.append(span.bar);
    span.button = spanButton(span);
  });
  const playhead = make("div", { class: "playhead", hidden: "" });
  track.append(playhead);
  track.addEventListener("click", (event) => {
    const box = track.getBoundingClientRect();
    seek(video, (video.duration * (event.clientX - box.left)) / box.width);
  });
  const row = make(
    "li",
    { class: "lane" },
    make("p", { class: "sentence" }, number === null ? null : make("b", {}, `${number}.`), lane.sentence),
    track,
    spans.length ? make("div", { class: "spans" }, ...spans.map((span) => span.button)) : make("p", { class: "none" }, "no span"),
  );
  lane.playhead = playhead;
  lane.row = row;
  row.spans = spans;
  return row;
}

function kindOf(span) {
  if (span.kind === "true") return "true";
  return span.fits ? (span.rank === 1 ? "best" : "") : "unfit";
}

function spanButton(span) {
  const label = span.kind === "true" ? "true" : String(span.rank);
  const button = make(
    "button",
    { type: "button", class: `span ${kindOf(span)}`, tabindex: "-1" },
    make("span", { class: "rank" }, label),
    make("span", {}, `${clock(span.start)} – ${clock(span.end)}`),
    measure(span) ? make("span", { class: "score" }, measure(span)) : null,
  );
  button.addEventListener("click", () => choose(span));
  return button;
}

/** What is said of a span's worth. */
function measure(span) {
  const parts = [];
  if (typeof span.score === "number") parts.push(span.score.toPrecision(3));
  if (typeof span.iou === "number") parts.push(`IoU ${span.iou.toFixed(2)}`);
  if (span.fits === false) parts.push("does not fit");
  return parts.join(", ");
}

/** In which row each span is drawn, so that none lies on another; those of the truth come first. */
function rowsOf(spans) {
  const rows = [];
  return spans.map((span) => {
    let row = rows.findIndex((others) => others.every((other) => other.kind === span.kind && (other.end <= span.start || span.end <= other.start)));
    if (row < 0) row = rows.push([]) - 1;
    rows[row].push(span);
    return row;
  });
}

function curve(values) {
  const low = Math.min(...values);
  const range = Math.max(...values) - low || 1;
  const points = values.map((value, place) => `${(place + 0.5).toFixed(1)} ${(96 - (90 * (value - low)) / range).toFixed(1)}`);
  const [first, last] = [points[0].split(" ")[1], points.at(-1).split(" ")[1]];
  const edge = `M0 ${first} L${points.join(" L")} L${values.length} ${last}`;
  return make(
    "svg",
    { class: "curve", viewBox: `0 0 ${values.length} 100`, preserveAspectRatio: "none", "aria-hidden": "true" },
    make("path", { class: "area", d: `${edge} V100 H0 Z` }),
    make("path", { class: "edge", d: edge }),
  );
}

function axis(duration) {
  const marks = 4;
  const line = make("div", { class: "axis", "aria-hidden": "true" });
  for (let mark = 0; mark <= marks; mark++) {
    const label = make("span", {}, clock((duration * mark) / marks));
    label.style.left = `${(100 * mark) / marks}%`;
    line.append(label);
  }
  return line;
}

let withPlayheads = null; // the video whose lanes show where the player is

function movePlayheads() {
  if (withPlayheads !== shown) for (const lane of withPlayheads?.lanes ?? []) lane.playhead.hidden = true;
  withPlayheads = shown;
  for (const lane of shown?.lanes ?? []) {
    lane.playhead.hidden = false;
    lane.playhead.style.left = `${(100 * position()) / shown.duration}%`;
  }
}

// Choosing a span: with the keys or the pointer; the chosen one is what Enter plays.

const lanes = () => [...document.querySelectorAll(".lane:not([hidden])")].filter((row) => row.spans.length && !row.closest("[hidden]"));
const spansOf = (row) => (row ? row.spans : []);

function mark(span) {
  if (current) {
    current.button.removeAttribute("aria-current");
    current.button.tabIndex = -1;
    current.bar.classList.remove("selected");
    current.video.card.classList.remove("current");
  }
  current = span;
  span.button.setAttribute("aria-current", "true");
  span.button.tabIndex = 0;
  span.bar.classList.add("selected");
  span.video.card.classList.add("current");
  document.getElementById("now-sentence").textContent = span.lane.sentence;
  const about = measure(span) ? `· ${span.kind === "true" ? "true span" : measure(span)} ` : "";
  document.getElementById("now-span").textContent = `${clock(span.start)} – ${clock(span.end)} ${about}· ${span.video.name}`;
}

/** Choose a span and show where it begins. */
function select(span, focus = false) {
  mark(span);
  if (focus) span.button.focus();
  return seek(span.video, span.start);
}

/** Choose a span and play it. */
function choose(span) {
  mark(span);
  span.button.focus({ preventScroll: true });
  return playSpan(span.video, span.start, span.end);
}

/** Choose the span that is a number of spans, or of sentences, away. */
function step(spans, sentences) {
  const rows = lanes();
  if (!rows.length) return;
  let row = current ? rows.indexOf(current.lane.row) : -1;
  if (row < 0) return void select(rows[0].spans[0], true);
  let place = rows[row].spans.indexOf(current) + spans;
  if (sentences) [row, place] = [Math.min(Math.max(row + sentences, 0), rows.length - 1), 0];
  else if (place < 0 && row > 0) place = rows[--row].spans.length - 1;
  else if (place >= rows[row].spans.length && row < rows.length - 1) [row, place] = [row + 1, 0];
  const next = rows[row].spans[place];
  if (next && next !== current) select(next, true);
}

const playCurrent = () => current && playSpan(current.video, current.start, current.end);

document.addEventListener(
  "keydown",
  (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const typing = event.target.matches("textarea, input:not([type='checkbox'])");
    if (typing && event.key !== "Escape") return;
    const onButton = event.target.matches("button, summary, a, input, video");
    const actions = {
      ArrowLeft: () => step(-1, 0),
      ArrowRight: () => step(1, 0),
      ArrowUp: () => step(0, -1),
      ArrowDown: () => step(0, 1),
      Enter: onButton ? null : playCurrent,
      " ": onButton && !event.target.matches(".span") ? null : () => (player.paused ? player.play().catch(() => {}) : player.pause()),
      "/": () => words().focus(),
      Escape: () => (typing ? current?.button.focus() : player.pause()),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  },
  true, // before the player's own keys
);
document.addEventListener("keyup", (event) => {
  if (event.key === " " && event.target.matches(".span")) event.preventDefault(); // a button's click comes with this
});

document.getElementById("play").addEventListener("click", playCurrent);
document.getElementById("previous").addEventListener("click", () => step(-1, 0));
document.getElementById("next").addEventListener("click", () => step(1, 0));
for (const button of document.querySelectorAll("[data-kind]"))
  button.addEventListener("click", () => download(button.dataset.kind, content, shown && content.videos.includes(shown) ? shown : content.videos[0]));

// Dark and light: as the system has it, until the switch is pressed; then remembered where the browser allows that.

const dark = matchMedia("(prefers-color-scheme: dark)");
const remembered = () => {
  try {
    return localStorage.getItem("vpgfast-theme");
  } catch {
    return null;
  }
};
function paint(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
  document.getElementById("theme").setAttribute("aria-label", `Change to ${theme === "dark" ? "light" : "dark"} colours`);
}
paint(remembered() ?? (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => remembered() ?? paint(dark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  paint(theme);
  try {
    localStorage.setItem("vpgfast-theme", theme);
  } catch {} // a page from a file may not be allowed to remember
});
