(() => {
  const panel = document.getElementById("viewer");
  const source = document.getElementById("viewer-data");
  if (!panel || !source) return;
  const part = name => document.getElementById("viewer-" + name);
  const test = document.createElement("canvas").getContext("webgl2");
  if (!test || typeof DecompressionStream === "undefined") {
    part("none").hidden = false;
    return;
  }
  const lose = test.getExtension("WEBGL_lose_context");
  if (lose) lose.loseContext();
  const data = JSON.parse(source.textContent);
  const base = { reference: [230, 159, 0], predicted: [86, 180, 233] };
  const shade = (rgb, i) => rgb.map(v => Math.round(v + (255 - v) * 0.55 * (i % 3) / 2));
  let viewer = null, loading = null, shown = -1, loaded = {}, present = [];

  const script = async () => {
    const packed = document.getElementById("viewer-script").textContent.trim();
    const bytes = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const element = document.createElement("script");
    element.textContent = await new Response(stream).text();
    document.head.append(element);
    return window.niivue;
  };
  const start = async () => {
    const { Niivue } = await script();
    viewer = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.85, 0.2, 0.45, 0.8], crosshairWidth: 0.4, crosshairWidthUnit: "percent",
      show3Dcrosshair: false, dragAndDropEnabled: false, loadingText: "", multiplanarShowRender: 1,
      isRadiologicalConvention: true, sagittalNoseLeft: true, logLevel: "silent", clipPlaneColor: [0, 0, 0, 0],
      isNearestInterpolation: true, isSliceMM: false,
    });
    await viewer.attachToCanvas(part("canvas"), true);
    viewer.onLocationChange = say;
    return viewer;
  };
  const colours = kind => {
    const all = data.structures.map((_, i) => shade(base[kind], i));
    const column = k => [0, ...all.map(c => c[k])];
    return { R: column(0), G: column(1), B: column(2), A: [0, ...all.map(() => 255)],
      I: [0, ...all.map((_, i) => i + 1)], labels: ["", ...data.structures] };
  };
  const say = place => {
    const words = [place.mm.slice ? Array.from(place.mm).slice(0, 3).map(v => v.toFixed(1)).join(", ") + " mm" : ""];
    place.values.forEach((v, i) => {
      const name = data.structures[Math.round(v.value) - 1];
      words.push(data.words[present[i]] + ": " + (i ? name || "–" : Number(v.value.toPrecision(4))));
    });
    part("place").textContent = words.join("; ");
  };
  const put = () => {  // a mask that is not wanted is taken out: made transparent, its outline would stay
    const wanted = Object.keys(loaded).filter(kind => kind === "image" || part(kind).checked);
    if (wanted.join() === present.join()) return;
    if (present[0] === "image") {
      while (viewer.volumes.length > 1) viewer.removeVolume(viewer.volumes[viewer.volumes.length - 1]);
    }
    wanted.forEach((kind, i) => { if (i || present[0] !== "image") viewer.addVolume(loaded[kind]); });
    present = wanted;
  };
  const draw = () => {
    put();
    present.forEach((_, i) => { if (i) viewer.volumes[i].opacity = Math.max(0.004, Number(part("fill").value)); });  // of 0 the outline is not drawn
    viewer.setAtlasOutline(part("outline").checked ? 1 : 0);
    viewer.setMultiplanarLayout(2);
    viewer.setSliceType(Number(part("planes").value));
    viewer.setClipPlane(part("cut").checked ? [0.05, 270, 0] : [2, 0, 0]);
    viewer.updateGLVolume();
  };
  const open = async index => {
    panel.hidden = false;
    loading = loading || start();
    await loading;
    if (shown !== index) {
      const { NVImage } = window.niivue, scene = data.scenes[index], volumes = {};
      for (const [kind, base64] of Object.entries(scene.layers)) {
        const grey = kind === "image" ? { cal_min: scene.low, cal_max: scene.high } : {};
        const volume = await NVImage.loadFromBase64({ base64, name: kind + ".nii.gz", colormap: "gray", ...grey });
        if (kind !== "image") volume.setColormapLabel(colours(kind));
        volumes[kind] = volume;
      }
      while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[viewer.volumes.length - 1]);
      shown = index;
      loaded = volumes;
      present = [];
      part("case").value = String(index);
      for (const kind of ["reference", "predicted"]) part(kind).parentElement.hidden = !(kind in scene.layers);
    }
    draw();
    viewer.createOnLocationChange();
    panel.dataset.shown = data.scenes[index].case;
  };
  const failed = error => {
    panel.hidden = true;
    part("none").hidden = false;
    console.warn(String(error));
  };
  const go = index => open(index).catch(failed);

  data.scenes.forEach((scene, i) => {
    const option = document.createElement("option");
    option.value = String(i);
    option.textContent = scene.case;
    part("case").append(option);
  });
  part("case").parentElement.hidden = data.scenes.length < 2;
  part("case").addEventListener("change", () => go(Number(part("case").value)));
  for (const name of ["planes", "reference", "predicted", "fill", "outline", "cut"])
    part(name).addEventListener("input", () => { if (shown >= 0) draw(); });
  document.querySelectorAll("button[data-scene]").forEach(button => {
    button.hidden = false;
    button.addEventListener("click", () => {
      go(Number(button.dataset.scene));
      panel.scrollIntoView({ block: "nearest" });
    });
  });
  if ("open" in panel.dataset) go(0);
})();
