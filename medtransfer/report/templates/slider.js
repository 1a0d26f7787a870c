"use strict";
(() => {
  const data = JSON.parse(document.getElementById("points").textContent);
  const slider = document.getElementById("slider");
  if (!data || !slider) return;
  document.getElementById("interactive").hidden = false;
  const field = document.getElementById("prevalence");
  const put = (id, text) => { document.getElementById(id).textContent = text; };
  const share = (a, b) => (b > 0 ? (100 * a / b).toFixed(1) + " %" : data.words.none);
  slider.max = String(data.rows.length - 1);
  slider.value = String(data.start);
  let prevalence = data.positive / (data.positive + data.negative);
  field.value = (100 * prevalence).toFixed(1);
  const dots = Array.from(document.querySelectorAll("#live-hundred .hundred circle"));
  const show = () => {
    const [cut, tp, fp] = data.rows[Number(slider.value)];
    const fn = data.positive - tp, tn = data.negative - fp;
    put("live-cut", cut.toFixed(3));
    put("live-tp", tp); put("live-fp", fp); put("live-fn", fn); put("live-tn", tn);
    put("live-se", share(tp, data.positive)); put("live-sp", share(tn, data.negative));
    const se = data.positive ? tp / data.positive : 0, sp = data.negative ? tn / data.negative : 0;
    const right = se * prevalence, wrong = (1 - sp) * (1 - prevalence);
    const clear = sp * (1 - prevalence), missed = (1 - se) * prevalence;
    put("live-ppv", share(right, right + wrong)); put("live-npv", share(clear, clear + missed));
    const sick = Math.round(100 * prevalence), found = Math.round(sick * se);
    const alarms = Math.round((100 - sick) * (1 - sp));
    const counts = { diseased: sick, found, missed: sick - found, alarms, cleared: 100 - sick - alarms };
    put("live-words", data.words.sentence.replace(/\{(\w+)\}/g, (_, name) => counts[name]));
    dots.forEach((dot, i) => dot.setAttribute("class",
      i < found ? "found" : i < sick ? "missed" : i < sick + alarms ? "alarm" : "clear"));
    slider.setAttribute("aria-valuetext", cut.toFixed(3));
  };
  slider.addEventListener("input", show);
  field.addEventListener("input", () => {
    prevalence = Math.min(100, Math.max(0, Number(field.value) || 0)) / 100;
    show();
  });
  show();
})();
