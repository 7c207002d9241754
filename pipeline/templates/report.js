"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
// on a touch screen a drag scrolls the page, so it must not zoom a plot
const dragmode = window.matchMedia("(pointer: fine)").matches ? "zoom" : false;
for (const { id, traces, layout } of figures) {
  const config = { responsive: true, displayModeBar: false, displaylogo: false };
  Plotly.newPlot(id, traces, { ...layout, dragmode }, config);
}
const refit = () => figures.forEach(({ id }) => Plotly.Plots.resize(document.getElementById(id)));
window.addEventListener("beforeprint", refit);
window.addEventListener("afterprint", refit);
