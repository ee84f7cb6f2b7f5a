"use strict";
// One page for files and for the server: `data.videos` is what is shown, `data.serve` whether there is someone to ask.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const player = $("player"), query = $("query"), answers = $("answers");
let videos = data.videos, current = 0, playing = null; // playing: {start, end} of the span that is playing
let filtered = "";

const clock = (seconds) => {
  const tenths = Math.round(seconds * 10);
  const pad = (n) => String(n).padStart(2, "0");
  return `${Math.floor(tenths / 36000)}:${pad(Math.floor(tenths / 600) % 60)}:${pad(Math.floor(tenths / 10) % 60)}.${tenths % 10}`;
};
const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name === "dataset") Object.assign(made.dataset, value);
    else if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};
const say = (text) => { $("status").textContent = text; };

// --- playing

// A timer as well as frames: frames stop coming where the page is not seen.
let timer = 0;
const stopped = (at) => {
  if (!playing) return;
  const { end } = playing;
  playing = null;
  clearTimeout(timer);
  player.pause();
  if (Math.abs(at - end) > 0.04) player.currentTime = Math.min(end, player.duration || end);
};
const watch = () => {
  showTime();
  if (playing && !player.paused) {
    if (player.currentTime >= playing.end - 0.5 / 60) stopped(player.currentTime);
    else requestAnimationFrame(watch);
  }
};
const arm = () => {
  clearTimeout(timer);
  if (!playing) return;
  const left = (playing.end - player.currentTime) / player.playbackRate;
  timer = setTimeout(() => {
    if (!playing || player.paused) return;
    if (player.currentTime >= playing.end - 0.02) stopped(player.currentTime);
    else arm();
  }, Math.max(5, left * 1000));
};
const play = async (start, end) => {
  playing = null;
  player.pause();
  if (!videos[current] || !videos[current].src) return;
  player.currentTime = start;
  playing = { start, end };
  try { await player.play(); } catch (error) {
    if (error.name !== "AbortError") { playing = null; say(`The video does not play: ${error.message}`); }
  }
};
player.addEventListener("playing", () => { requestAnimationFrame(watch); arm(); });
player.addEventListener("ratechange", arm);
player.addEventListener("timeupdate", watch);
player.addEventListener("ended", () => { playing = null; });
player.addEventListener("seeking", () => {
  // Whoever seeks by hand wants to see what is there, not to be stopped.
  if (playing && (player.currentTime < playing.start - 0.2 || player.currentTime > playing.end + 0.2)) playing = null;
  showTime();
});
player.addEventListener("error", () => {
  if (player.getAttribute("src")) say("The browser can't play this video; its file may have moved.");
});
const showTime = () => {
  $("now").textContent = clock(player.currentTime || 0);
  const share = 100 * (player.currentTime || 0) / videos[current].duration;
  for (const head of document.querySelectorAll(".head")) head.style.left = `${Math.min(100, share)}%`;
};

// --- showing

const shown = (video) => { // its lanes that the filter leaves, with their places
  const lanes = video.lanes.map((lane, place) => [lane, place]);
  const named = video.name.toLowerCase().includes(filtered);
  return named ? lanes : lanes.filter(([lane]) => lane.sentence.toLowerCase().includes(filtered));
};
const bar = (start, end, kind, duration) => element("div", { class: `bar ${kind}`, style: {
  left: `${100 * start / duration}%`, width: `${100 * (end - start) / duration}%` } });
const curveOf = (values) => {
  const low = Math.min(...values), range = Math.max(...values) - low || 1;
  const points = values.map((value, i) => `${i + 0.5},${100 - 96 * (value - low) / range}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${values.length} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const area = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
  area.setAttribute("points", `0,100 ${points.join(" ")} ${values.length},100`);
  svg.append(area);
  return svg;
};
const laneOf = (lane, place, video) => {
  const time = element("div", { class: "time" });
  if (lane.curve && lane.curve.length > 1) time.append(curveOf(lane.curve));
  const bars = lane.spans.map(([start, end], rank) => bar(start, end, rank ? "other" : "first", video.duration));
  time.append(...bars.slice().reverse(), ...lane.truth.map(([start, end]) => bar(start, end, "truth", video.duration)));
  time.append(element("div", { class: "head" }));
  time.addEventListener("click", (event) => {
    const box = time.getBoundingClientRect();
    const at = video.duration * (event.clientX - box.left) / box.width;
    const hit = lane.spans.findIndex(([start, end]) => start <= at && at <= end);
    if (hit >= 0) choose(buttons[hit], true);
    else if (video.src) { playing = null; player.currentTime = at; }
  });
  const buttons = lane.spans.map(([start, end, score], rank) => {
    const text = `${clock(start)} – ${clock(end)}`;
    const button = element("button", { type: "button", "aria-pressed": "false", dataset: { lane: place, rank },
      "aria-label": `moment ${rank + 1} of “${lane.sentence}”: ${text}, score ${score}` },
      `${rank + 1}. ${text}`, element("span", { class: "score" }, String(Number(score.toPrecision(3)))));
    button.addEventListener("click", () => choose(button, true));
    return button;
  });
  const ranks = element("ol", { class: "ranks" }, ...buttons.map((button) => element("li", {}, button)));
  const body = [element("h3", { dir: "auto" }, lane.sentence)];
  if (lane.note) body.push(element("p", { class: "note" }, lane.note));
  body.push(time, buttons.length ? ranks : element("p", { class: "meta" }, "no moment"));
  if (lane.truth.length) {
    const true_ = lane.truth.map(([start, end]) => `${clock(start)} – ${clock(end)}`).join(", ");
    body.push(element("p", { class: "meta" }, element("span", { class: "key truth" }), `true: ${true_}`));
  }
  return element("article", { class: "lane", dataset: { lane: place } }, ...body);
};
const spanButtons = () => [...document.querySelectorAll(".ranks button")];
const choose = (button, plays) => {
  for (const other of spanButtons()) other.setAttribute("aria-pressed", "false");
  for (const other of document.querySelectorAll(".bar.chosen")) other.classList.remove("chosen");
  button.setAttribute("aria-pressed", "true");
  button.focus({ preventScroll: true });
  button.closest(".lane").scrollIntoView({ block: "nearest" });
  const [start, end] = videos[current].lanes[button.dataset.lane].spans[button.dataset.rank];
  const bars = [...button.closest(".lane").querySelectorAll(".bar:not(.truth)")].reverse();
  bars[button.dataset.rank].classList.add("chosen");
  if (plays) play(start, end);
};
const open = (place) => {
  current = place;
  playing = null;
  const video = videos[place];
  $("name").textContent = video.name;
  $("whole").textContent = clock(video.duration);
  player.hidden = !video.src;
  $("problem").hidden = !!video.src;
  $("problem").textContent = video.problem;
  if (video.src) { if (player.getAttribute("src") !== video.src) player.src = video.src; } else player.removeAttribute("src");
  player.setAttribute("aria-label", `video ${video.name}`);
  const lanes = shown(video).map(([lane, at]) => laneOf(lane, at, video));
  answers.replaceChildren(...lanes.length ? lanes : [element("p", { class: "meta" }, data.serve ? "" : "no sentence")]);
  showVideos();
  showTime();
};
const showVideos = () => {
  const nav = $("videos");
  const several = videos.length > 1;
  nav.hidden = !several;
  if (!several) return;
  nav.replaceChildren(...videos.map((video, place) => {
    const button = element("button", { type: "button", "aria-current": String(place === current) }, video.name);
    button.hidden = filtered !== "" && !data.serve && !shown(video).length;
    button.addEventListener("click", () => open(place));
    return button;
  }));
};

// --- keys

const step = (by, lanes) => {
  const buttons = spanButtons();
  if (!buttons.length) return;
  const pressed = buttons.findIndex((button) => button.getAttribute("aria-pressed") === "true");
  if (pressed < 0) return choose(buttons[0], false);
  if (!lanes) return choose(buttons[Math.max(0, Math.min(buttons.length - 1, pressed + by))], false);
  const firsts = buttons.filter((button) => button.dataset.rank === "0");
  const here = firsts.findIndex((button) => button.dataset.lane === buttons[pressed].dataset.lane);
  return choose(firsts[Math.max(0, Math.min(firsts.length - 1, here + by))], false);
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target === query;
  if (event.key === "Escape") { playing = null; player.pause(); if (writing) query.blur(); return; }
  if (writing || event.target === player) return;
  const steps = { ArrowRight: [1, false], ArrowLeft: [-1, false], ArrowDown: [1, true], ArrowUp: [-1, true] };
  if (event.key === "/") { event.preventDefault(); query.focus(); query.select(); }
  else if (event.key in steps) { event.preventDefault(); step(...steps[event.key]); }
});

// --- downloads

const stamp = (seconds, separator) => {
  const ms = Math.round(seconds * 1000), pad = (n, width = 2) => String(n).padStart(width, "0");
  return `${pad(Math.floor(ms / 3600000))}:${pad(Math.floor(ms / 60000) % 60)}:${pad(Math.floor(ms / 1000) % 60)}${separator}${pad(ms % 1000, 3)}`;
};
const frames = (seconds, fps) => { // non-drop time code
  const whole = Math.round(fps), count = Math.round(seconds * fps), pad = (n) => String(n).padStart(2, "0");
  const s = Math.floor(count / whole);
  return `${pad(Math.floor(s / 3600))}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}:${pad(count % whole)}`;
};
const best = (video) => video.lanes.filter((lane) => lane.spans.length)
  .map((lane) => [lane.sentence, ...lane.spans[0]]).sort((a, b) => a[1] - b[1]);
const makers = {
  json: () => JSON.stringify({ videos: videos.map((video) => ({ video: video.name, file: video.file, duration: video.duration,
    sentences: video.lanes.map((lane) => ({ sentence: lane.sentence, true: lane.truth,
      spans: lane.spans.map(([start, end, score]) => ({ start, end, score })), curve: lane.curve })) })) }, null, 2),
  csv: () => {
    const cell = (value) => /[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
    // What a spreadsheet would take for a formula is text here.
    const text = (value) => cell(/^[=+\-@\t\r]/.test(value) ? `'${value}` : value);
    const rows = videos.flatMap((video) => video.lanes.flatMap((lane) => lane.spans.map(([start, end, score], rank) =>
      [text(video.name), text(lane.sentence), rank + 1, start, end, score].join(","))));
    return ["video,sentence,rank,start,end,score", ...rows].join("\r\n") + "\r\n";
  },
  srt: () => best(videos[current]).map(([sentence, start, end], i) =>
    `${i + 1}\n${stamp(start, ",")} --> ${stamp(end, ",")}\n${sentence}\n`).join("\n"),
  edl: () => {
    const { fps, name, file } = videos[current];
    let at = 3600;
    const lines = best(videos[current]).flatMap(([sentence, start, end], i) => {
      const [from, to] = [at, at += end - start];
      const codes = [start, end, from, to].map((seconds) => frames(seconds, fps)).join(" ");
      return [`${String(i + 1).padStart(3, "0")}  AX       V     C        ${codes}`,
        `* FROM CLIP NAME: ${file || name}`, `* COMMENT: ${sentence}`];
    });
    return [`TITLE: ${name}`, "FCM: NON-DROP FRAME", "", ...lines, ""].join("\n");
  },
};
for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", () => {
    const kind = button.dataset.download;
    const whole = kind === "json" || kind === "csv";
    if (!videos[current]) return;
    const name = (whole && videos.length > 1 ? "moments" : videos[current].name).replace(/[^\p{L}\p{N}._-]+/gu, "_");
    const address = URL.createObjectURL(new Blob([makers[kind]()], { type: "text/plain" }));
    const link = element("a", { href: address, download: `${name}.${kind}` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}

// --- look

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = (name) => { document.documentElement.dataset.theme = name; };
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
$("version").textContent = data.version;

if (!data.serve) {
  $("query-form").addEventListener("submit", (event) => event.preventDefault());
  query.addEventListener("input", () => { filtered = query.value.trim().toLowerCase(); open(current); });
  if (videos.length) open(0);
  else answers.append(element("p", { class: "meta" }, "Nothing was found."));
}
