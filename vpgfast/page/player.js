// The player: shows a video, and plays a span of it that stops where the span ends.

const player = document.getElementById("player");
let shown = null; // the video on show
let limit = null; // {start, end} of the span that is playing, on the player's clock
let turn = 0; // counts what was asked of the player: an older wish ends when a newer one comes

/** Put a video on show; false if there is nothing to play. */
function show(video) {
  if (shown !== video) {
    const same = shown && video.src && shown.src === video.src;
    shown = video;
    if (!same) {
      limit = null;
      const source = video.embedded ? embedded(video) : video.src;
      if (source) player.src = source;
      else player.removeAttribute("src");
      player.load();
      player.hidden = !source;
      say(source ? video.unplayable : video.missing);
    }
  }
  return Boolean(video.src || video.embedded);
}

/** Address of a video that is inside this page. */
function embedded(video) {
  if (!video.address) {
    const bytes = atob(document.getElementById(video.embedded).textContent.trim());
    const data = Uint8Array.from(bytes, (letter) => letter.charCodeAt(0));
    video.address = URL.createObjectURL(new Blob([data], { type: video.type }));
  }
  return video.address;
}

function say(text) {
  const note = document.getElementById("note");
  note.textContent = text || "";
  note.hidden = !text;
}

player.addEventListener("loadeddata", () => {
  if (player.videoWidth) say("");
  else if (!shown.unplayable) say(`This browser plays only the sound of ${shown.file}.`);
});
player.addEventListener("error", () => {
  if (!shown || !player.hasAttribute("src")) return;
  player.hidden = true;
  const where = shown.embedded ? "" : ` If it plays elsewhere, look whether it still is where this page looks for it: ${shown.src}`;
  say(shown.unplayable || `This browser can't play ${shown.file}.${where}`);
});

/** Resolves when the player has done what was asked (an event), rejects when it can't. */
function happened(event) {
  return new Promise((resolve, reject) => {
    const end = (how, value) => {
      player.removeEventListener(event, done);
      player.removeEventListener("error", failed);
      how(value);
    };
    const done = () => end(resolve);
    const failed = () => end(reject, new Error("the player failed"));
    player.addEventListener(event, done);
    player.addEventListener("error", failed);
  });
}

/** The player counts from 0 where a file's own clock may begin later; spans count from that beginning. */
const onPlayer = (video, seconds) => seconds + (video.begins || 0);
const position = () => player.currentTime - (shown?.begins || 0);

/** Go to a time of a video, without playing; false if it can't be shown or something newer was asked. */
async function seek(video, seconds) {
  const mine = ++turn;
  limit = null;
  player.pause();
  if (!show(video) || player.error) return false;
  try {
    if (player.readyState < HTMLMediaElement.HAVE_METADATA) await happened("loadedmetadata");
    if (mine !== turn) return false;
    const arrived = happened("seeked");
    player.currentTime = onPlayer(video, seconds);
    await arrived;
  } catch {
    return false; // the note says why
  }
  return mine === turn;
}

/** Play a video from start to end, both in seconds, and stop there. */
async function playSpan(video, start, end) {
  if (!(await seek(video, start))) return;
  limit = { start: onPlayer(video, start), end: onPlayer(video, Math.max(end, start + 0.04)) };
  try {
    await player.play();
  } catch (error) {
    if (error.name === "NotAllowedError") say("This browser asks for a click on the player before it plays.");
  }
}

/** Stop at the end of the span. A frame too far is taken back, so what stays on show belongs to the span. */
function stopAtEnd() {
  if (!limit || player.currentTime < limit.end) return;
  const last = Math.max(limit.start, limit.end - 0.001);
  limit = null;
  player.pause();
  player.currentTime = last;
}

/** Looks at every picture that the screen shows; the timer is for tabs that show none. */
function watch() {
  if (player.paused) return;
  stopAtEnd();
  movePlayheads();
  requestAnimationFrame(watch);
}
function watchInBackground() {
  if (!limit || player.paused) return;
  stopAtEnd();
  if (limit) setTimeout(watchInBackground, Math.max(10, (1000 * (limit.end - player.currentTime)) / player.playbackRate));
}
player.addEventListener("playing", () => {
  watch();
  watchInBackground();
});
player.addEventListener("timeupdate", () => {
  stopAtEnd();
  movePlayheads();
});
player.addEventListener("seeking", () => {
  if (limit && (player.currentTime < limit.start - 0.1 || player.currentTime > limit.end)) limit = null; // by hand
});
player.addEventListener("ended", () => (limit = null));
