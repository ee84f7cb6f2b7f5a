// A page that is served: its query asks the server, as one types, and its library shows what the server has.

let question = 0; // counts questions: an older answer never replaces a newer one
let waiting = null; // the request that is under way
let pause = null; // between the last key and the question
let chosen = null; // the video that is asked; null: all
let ready = -1; // videos that could be asked when they were last looked at
const rows = new Map(); // of the library's list, by the video's name

function status(text, problem = false) {
  const line = document.getElementById("status");
  line.textContent = text;
  line.classList.toggle("problem", problem);
}

/** What the server says to a request; an error is thrown with the server's own words. */
async function answerOf(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `The server failed (${response.status}); what it prints says why.`);
  return answer;
}

async function ask() {
  clearTimeout(pause);
  const mine = ++question;
  waiting?.abort();
  const text = words().value.trim();
  if (!text) {
    showNothing();
    return status("");
  }
  waiting = new AbortController();
  status("Looking…");
  try {
    const answer = await answerOf("api/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text, video: chosen }),
      signal: waiting.signal,
    });
    if (mine !== question) return;
    render(answer);
    status(answer.status);
  } catch (error) {
    if (mine !== question || error.name === "AbortError") return;
    showNothing();
    status(error.message, true);
  }
}

function showNothing() {
  render({ title: "", about: "", videos: [] });
  if (!words().value.trim()) found.append(make("p", { class: "hint" }, "Write what happens in a video. The moments come as you type."));
}

words().addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(ask, 250);
});
words().addEventListener("keydown", async (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  await ask();
  current?.button.focus();
});
document.getElementById("query").addEventListener("submit", (event) => event.preventDefault());

// The library.

function choosePlace(name) {
  chosen = name;
  document.getElementById("all").setAttribute("aria-pressed", String(name === null));
  for (const [other, row] of rows) row.button.setAttribute("aria-pressed", String(other === name));
  if (name !== null && player.paused && !words().value.trim()) show(rows.get(name).video);
  ask();
}
document.getElementById("all").addEventListener("click", () => choosePlace(null));

function libraryRow(name) {
  const state = make("span", { class: "faint numbers" });
  const bar = make("progress", { max: "1", hidden: "", "aria-label": `Encoding ${name}` });
  const problem = make("span", { class: "problem", hidden: "" });
  const button = make("button", { type: "button", "aria-pressed": "false" }, make("span", {}, name), state, bar, problem);
  button.addEventListener("click", () => choosePlace(chosen === name ? null : name));
  return { item: make("li", {}, button), button, state, bar, problem };
}

function showLibrary(library) {
  document.getElementById("about").textContent = content.about || library.about;
  document.getElementById("add").hidden = !library.uploads;
  document.getElementById("library-note").textContent = library.note;
  for (const [name, row] of rows)
    if (!library.videos.some((video) => video.name === name)) {
      row.item.remove();
      rows.delete(name);
    }
  library.videos.forEach((video, place) => {
    const row = rows.get(video.name) ?? libraryRow(video.name);
    rows.set(video.name, row);
    const list = document.getElementById("videos");
    if (list.children[place] !== row.item) list.insertBefore(row.item, list.children[place] ?? null);
    row.video = { ...video, lanes: [], embedded: null };
    const words = { ready: clock(video.duration ?? 0), waiting: "waits", encoding: "is looked at", failed: "can't be read" };
    const share = video.state === "encoding" && video.done !== null ? `${Math.floor(100 * video.done)}%` : "";
    row.state.textContent = share || words[video.state];
    row.bar.hidden = video.state !== "encoding";
    if (video.done === null) row.bar.removeAttribute("value");
    else row.bar.value = video.done;
    row.problem.textContent = video.problem;
    row.problem.hidden = !video.problem;
  });
  if (chosen !== null && !rows.has(chosen)) choosePlace(null);
  const now = library.videos.filter((video) => video.state === "ready").length;
  if (ready >= 0 && now !== ready && words().value.trim()) ask();
  ready = now;
}

async function watchLibrary() {
  let busy = false;
  try {
    if (!document.hidden) {
      const library = await answerOf("api/library");
      showLibrary(library);
      busy = library.videos.some((video) => video.state === "waiting" || video.state === "encoding");
    }
  } catch (error) {
    document.getElementById("library-note").textContent = error.message;
  }
  setTimeout(watchLibrary, busy ? 700 : 2500);
}

// Adding videos, by the button or by dropping them on the page.

function upload(file) {
  return new Promise((resolve) => {
    const note = document.getElementById("library-note");
    const request = new XMLHttpRequest(); // fetch can't say how far it is
    request.open("PUT", `api/videos/${encodeURIComponent(file.name)}`);
    request.upload.addEventListener("progress", (event) => {
      note.textContent = `${file.name}: ${Math.floor((100 * event.loaded) / Math.max(1, event.total))}% sent`;
    });
    request.addEventListener("loadend", () => {
      let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {} // no answer, or none of ours
      if (request.status === 201) resolve("");
      else resolve(answer.error || `${file.name} could not be sent to the server.`);
    });
    request.send(file);
  });
}
async function uploadAll(files) {
  const problems = [];
  for (const file of files) problems.push(await upload(file));
  const said = problems.filter(Boolean).join(" ");
  if (said) status(said, true);
}
const files = document.getElementById("files");
document.getElementById("add").addEventListener("click", () => files.click());
files.addEventListener("change", async () => {
  await uploadAll([...files.files]);
  files.value = "";
});
const library = document.getElementById("library");
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  library.classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || library.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  library.classList.remove("over");
  if (!document.getElementById("add").hidden) uploadAll([...event.dataTransfer.files]);
});

showNothing();
watchLibrary();
