// What can be taken along: JSON, CSV, SRT and EDL, made here from what the page holds.

/** h:mm:ss.s */
function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const two = (number) => String(number).padStart(2, "0");
  return `${Math.floor(tenths / 36000)}:${two(Math.floor(tenths / 600) % 60)}:${two(Math.floor(tenths / 10) % 60)}.${tenths % 10}`;
}

function asJson(content) {
  const videos = content.videos.map((video) => ({
    video: video.name,
    file: video.file,
    duration: video.duration,
    ...(video.score === null ? {} : { score: video.score }),
    sentences: video.lanes.map((lane) => ({
      sentence: lane.sentence,
      spans: lane.spans,
      ...(lane.truth.length ? { true: lane.truth } : {}),
      ...(lane.curve ? { curve: lane.curve } : {}),
    })),
  }));
  return JSON.stringify({ title: content.title, videos }, null, 2) + "\n";
}

function asCsv(content) {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const rows = [["video", "sentence", "kind", "rank", "start", "end", "score", "fits"]];
  for (const video of content.videos)
    for (const lane of video.lanes) {
      const row = (kind, rank, span) => {
        const times = [span.start.toFixed(3), span.end.toFixed(3)];
        rows.push([video.name, lane.sentence, kind, rank, ...times, span.score ?? "", span.fits ?? ""]);
      };
      lane.truth.forEach((span) => row("true", "", span));
      lane.spans.forEach((span, place) => row("found", place + 1, span));
    }
  return rows.map((row) => row.map((value) => cell(String(value))).join(",") + "\r\n").join("");
}

/** The spans of a video for an editor, in the order of time: the best of each sentence if it fits, or every one. */
function cues(video, every) {
  const found = video.lanes.flatMap((lane) =>
    lane.spans.filter((span, place) => every || (place === 0 && span.fits)).map((span) => ({ ...span, sentence: lane.sentence.replace(/\s+/g, " ").trim() })),
  );
  return found.sort((a, b) => a.start - b.start || a.end - b.end);
}

function asSrt(video, every) {
  const stamp = (seconds) => {
    const ms = Math.round(seconds * 1000);
    const part = (size, count, digits) => String(Math.floor(ms / size) % count).padStart(digits, "0");
    return `${part(3600000, 1e6, 2)}:${part(60000, 60, 2)}:${part(1000, 60, 2)},${part(1, 1000, 3)}`;
  };
  return cues(video, every)
    .map((cue, place) => `${place + 1}\n${stamp(cue.start)} --> ${stamp(Math.max(cue.end, cue.start + 0.001))}\n${cue.sentence}\n\n`)
    .join("");
}

/** CMX 3600, non-drop frame: the cuts one behind the other, each naming its file and its sentence. */
function asEdl(video, every) {
  let rate = video.rate || 25;
  while (rate > 60.5) rate /= 2; // frames have two digits
  const base = Math.max(1, Math.round(rate));
  const two = (number) => String(number).padStart(2, "0");
  const timecode = (frame) => {
    const seconds = Math.floor(frame / base);
    return [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60, frame % base].map(two).join(":");
  };
  let record = 0;
  const lines = [`TITLE: ${video.name.replace(/\s+/g, " ")}`, "FCM: NON-DROP FRAME", ""];
  cues(video, every).forEach((cue, place) => {
    const first = Math.round(cue.start * rate);
    const last = Math.max(first + 1, Math.round(cue.end * rate));
    const times = [first, last, record, record + last - first].map(timecode).join(" ");
    record += last - first;
    lines.push(`${String(place + 1).padStart(3, "0")}  AX       V     C        ${times}`);
    lines.push(`* FROM CLIP NAME: ${video.file}`, `* COMMENT: ${cue.sentence}`, "");
  });
  return lines.join("\r\n");
}

function download(kind, content, video) {
  const every = document.getElementById("every").checked;
  const make = { json: () => asJson(content), csv: () => asCsv(content), srt: () => asSrt(video, every), edl: () => asEdl(video, every) };
  const types = { json: "application/json", csv: "text/csv", srt: "application/x-subrip", edl: "text/plain" };
  const name = (kind === "json" || kind === "csv" ? content.title : video.name).replace(/[^\p{L}\p{N}._ -]+/gu, "_").slice(0, 80);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([make[kind]()], { type: types[kind] }));
  link.download = `${name || "moments"}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
