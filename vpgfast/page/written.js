// A page that was written to a file: its query filters what is there.

document.getElementById("query").addEventListener("submit", (event) => {
  event.preventDefault();
  const first = lanes()[0];
  if (first) select(first.spans[0], true);
});
document.getElementById("words").addEventListener("input", () => {
  const wanted = words().value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const video of content.videos) {
    for (const lane of video.lanes) {
      const text = `${video.name} ${lane.sentence}`.toLowerCase();
      lane.row.hidden = !wanted.every((word) => text.includes(word));
    }
    video.card.hidden = video.lanes.length > 0 && video.lanes.every((lane) => lane.row.hidden);
  }
  const left = content.videos.reduce((sum, video) => sum + video.lanes.filter((lane) => !lane.row.hidden).length, 0);
  const all = content.videos.reduce((sum, video) => sum + video.lanes.length, 0);
  document.getElementById("status").textContent = wanted.length ? `${left} of ${all} sentences` : content.status;
});
const written = JSON.parse(document.getElementById("content").textContent);
document.getElementById("status").textContent = written.status;
render(written);
