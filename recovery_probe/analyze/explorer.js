// The explorer's charts, brought to life. Vega makes the labelled inputs (parameters with `bind`);
// here is what they do not say: the page's width, a click, the brush, the tooltip, the words.
"use strict";
(() => {
const at = (id) => document.getElementById(id);

const start = async () => {
  const packed = Uint8Array.from(atob(at("explorer-bundle").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  new Function(await new Response(unpacked).text())(); // window.vegaEmbed

  const refuse = () => Promise.reject(new Error("this page asks for nothing from elsewhere"));
  const spec = JSON.parse(at("explorer-spec").textContent);
  const charts = at("explorer-charts"), tip = at("explorer-tip");
  at("explorer-live").hidden = false;
  at("explorer-still").hidden = true;
  // A text of a document is a text: no markup is made of it.
  const tooltip = (handler, event, item, value) => {
    tip.hidden = value === null || value === undefined || value === "";
    if (tip.hidden) return;
    tip.replaceChildren(...Object.entries(value).map(([name, text]) => {
      const line = document.createElement("div");
      line.textContent = `${name}: ${text}`;
      return line;
    }));
    const right = document.documentElement.clientWidth - tip.offsetWidth - 4;
    const low = event.clientY + 14, high = event.clientY - tip.offsetHeight - 10;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, right))}px`;
    tip.style.top = `${low + tip.offsetHeight > innerHeight ? high : low}px`;
  };
  charts.addEventListener("mouseleave", () => { tip.hidden = true; });

  const { view } = await vegaEmbed(charts, spec, {
    mode: "vega", renderer: "svg", actions: false, defaultStyle: false, tooltip,
    logLevel: 1, // errors: a document without neighbours has an empty line, which is no news
    loader: { load: refuse, sanitize: refuse, http: refuse, file: refuse },
  });
  view.description(charts.dataset.about);

  // Beside the charts there is an axis.
  const fit = () => view.width(Math.max(160, charts.clientWidth - 62)).runAsync();
  addEventListener("resize", fit);

  view.addEventListener("click", (event, item) => {
    const chosen = item?.datum?.document;
    if (chosen === undefined) return;
    view.signal("document", chosen).runAsync();
    tooltip(null, event, item, item.tooltip); // a finger does not hover
  });

  let dragging = false;
  charts.addEventListener("pointerdown", () => { dragging = true; });
  addEventListener("pointerup", () => { dragging = false; });
  view.addSignalListener("brush", (name, { done }) => {
    if (!dragging || !done || done[0] === done[1]) return;
    const ends = spec.usermeta.ends, last = ends.length - 1;
    const first = ends.findLastIndex((end) => end <= Math.min(...done)) + 1;
    view.signal("first", Math.min(first, last));
    view.signal("last", ends.findIndex((end) => end >= Math.max(...done))).runAsync();
  });

  // For a screen reader: the chosen document's row of the table.
  const tell = () => {
    const table = at("explorer-table"), heads = [...table.tHead.rows[0].cells];
    const row = [...table.tBodies[0].rows].find((r) => r.cells[0].textContent === String(view.signal("document")));
    at("explorer-said").textContent = [...row.cells].map((c, i) => `${heads[i].textContent} ${c.textContent}`).join("; ");
  };
  view.addSignalListener("document", tell);
  await fit();
  tell();
  charts.view = view;
};

// An old browser, or a page that may run no such code, keeps the picture.
start().catch((error) => {
  at("explorer-live").hidden = true;
  at("explorer-still").hidden = false;
  at("explorer-why").textContent = `This browser cannot show it as a page that can be asked: ${error.message}`;
});
})();
