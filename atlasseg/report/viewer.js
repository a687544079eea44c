// The three-plane viewer: volumes that the page holds, drawn by NiiVue, which it holds too. Nothing is fetched.
(() => {
  const section = document.getElementById("viewer");
  const find = (selector) => section.querySelector(selector);
  const all = (selector) => [...section.querySelectorAll(selector)];
  const canvas = find("canvas");
  const said = find(".wait");
  const facts = JSON.parse(document.getElementById("viewer-facts").textContent);

  const unpacked = async (id) => {
    const text = atob(document.getElementById(`held-${id}`).textContent);
    const bytes = new Uint8Array(text.length);
    for (let n = 0; n < text.length; n++) bytes[n] = text.charCodeAt(n);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };

  const start = async () => {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser has no WebGL 2");
    const tag = document.createElement("script");
    tag.textContent = new TextDecoder().decode(await unpacked("niivue"));
    document.head.append(tag);
    const { Niivue, NVImage, SHOW_RENDER } = window.niivue;
    const view = new Niivue({
      dragAndDropEnabled: false,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      isRadiologicalConvention: facts.radiological,
      sagittalNoseLeft: true,
      crosshairColor: [1, 1, 1, 0.7],
      crosshairWidth: 0.7,
      crosshairWidthUnit: "percent",
      fontColor: [1, 1, 1, 1],
      fontMinPx: 18,
      showAllOrientationMarkers: true,
      multiplanarPadPixels: 4,
      scrollRequiresFocus: true,
      logLevel: "error",
    });
    await view.attachToCanvas(canvas);
    // No lighting of a 3-D rendering, which is not shown: NiiVue would spend most of its time on the gradients for it.
    view.blurShader = view.sobelFirstOrderShader = view.passThroughShader;
    view.addColormap("uncertainty", { R: [255, 255], G: [140, 140], B: [0, 0], A: [0, 255], I: [0, 255] });

    const holds = (id) => document.getElementById(`held-${id}`) !== null;
    const volume = async (id, colormap, opacity, most) =>
      NVImage.new(await unpacked(id), `${id}.nii`, colormap, opacity, null, 0, most, true);
    const layers = [await volume("scan", "gray", 1, 255), await volume("labels", "", 0.45, NaN)];
    if (holds("entropy")) layers.push(await volume("entropy", "uncertainty", 0, 1));
    const labels = layers[1];
    const channel = (from) => facts.colors.map((color) => parseInt(color.slice(from, from + 2), 16));
    const alpha = facts.values.map((value) => (value === 0 ? 0 : 255));
    labels.setColormapLabel({ R: channel(1), G: channel(3), B: channel(5), A: alpha, I: facts.values.map((_, n) => n) });
    view.volumes.push(...layers.slice(0, -1));
    view.addVolume(layers.at(-1)); // the last alone draws

    // -- where ---------------------------------------------------------------------------------------------------------
    const sides = [["L", "R"], ["P", "A"], ["I", "S"]];
    const place = (axis, mm) => `${sides[axis][mm >= 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)} mm`;
    const sliders = all("input[data-axis]");
    const size = view.volumes[0].dimsRAS.slice(1, 4);
    const spoken = find(".where");
    const told = (at) => {
      const voxel = view.frac2vox(view.scene.crosshairPos);
      sliders.forEach((slider, axis) => {
        slider.value = voxel[axis];
        const words = place(axis, at.mm[axis]);
        slider.setAttribute("aria-valuetext", words);
        find(`output[data-mm="${axis}"]`).textContent = words;
      });
      const number = Math.round(at.values[1].value);
      const unsure = at.values.length > 2 ? `, uncertainty ${at.values[2].value.toFixed(2)} bit` : "";
      spoken.textContent = `${facts.names[number] ?? ""}${unsure}`;
    };
    view.onLocationChange = told;
    const moved = (axis, voxel) => {
      const at = view.frac2vox(view.scene.crosshairPos);
      const step = [0, 0, 0];
      step[axis] = Math.min(Math.max(voxel, 0), size[axis] - 1) - at[axis];
      view.moveCrosshairInVox(...step);
    };
    sliders.forEach((slider, axis) => {
      slider.max = size[axis] - 1;
      slider.disabled = false;
      slider.addEventListener("input", () => moved(axis, Number(slider.value)));
    });
    view.moveCrosshairInVox(0, 0, 0); // to the middle of a voxel

    // -- what ----------------------------------------------------------------------------------------------------------
    const shows = find("#viewer-labels");
    const opacity = find("#viewer-opacity");
    const outlines = find("#viewer-outlines");
    const unsure = find("#viewer-uncertainty");
    const veil = find("#viewer-veil");
    const redrawn = () => {
      layers.slice(1).forEach((layer, n) => view.refreshLayers(layer, n + 1)); // the scan stays as it is
      view.drawScene();
    };
    const drawn = () => {
      const part = shows.checked ? opacity.value / 100 : 0;
      labels.opacity = outlines.checked ? 0 : part;
      view.opts.atlasOutline = outlines.checked ? Math.min(1, 2 * part) : 0;
      if (unsure) layers[2].opacity = unsure.checked ? veil.value / 100 : 0;
      redrawn();
    };
    [shows, opacity, outlines, unsure, veil].forEach((input) => input?.addEventListener("input", drawn));

    const held = { labels: labels.img };
    let whole = labels.img; // with the structures that are hidden
    const hidden = new Set();
    const filled = () => {
      labels.img = hidden.size ? whole.map((number) => (hidden.has(number) ? 0 : number)) : whole;
      redrawn();
      view.createOnLocationChange();
    };
    const choice = find("#viewer-candidate");
    const shown = async () => {
      const wanted = choice.value;
      held[wanted] ??= new whole.constructor(await unpacked(wanted));
      if (choice.value !== wanted) return; // another was chosen meanwhile
      whole = held[wanted];
      filled();
    };
    const stepped = (by) => {
      if (!choice) return;
      const count = choice.options.length;
      choice.selectedIndex = (choice.selectedIndex + by + count) % count;
      shown();
    };
    choice?.addEventListener("change", shown);
    all("button[data-step]").forEach((b) => b.addEventListener("click", () => stepped(Number(b.dataset.step))));

    const boxes = all("input[data-number]");
    const chosen = () => {
      hidden.clear();
      boxes.filter((box) => !box.checked).forEach((box) => hidden.add(Number(box.dataset.number)));
      filled();
    };
    boxes.forEach((box) => box.addEventListener("input", chosen));
    all("button[data-all]").forEach((button) =>
      button.addEventListener("click", () => {
        boxes.filter((box) => !box.closest("li").hidden).forEach((box) => (box.checked = button.dataset.all === "true"));
        chosen();
      }),
    );
    find("#viewer-filter").addEventListener("input", (event) => {
      const wanted = event.target.value.trim().toLowerCase();
      all(".list li").forEach((entry) => (entry.hidden = !entry.textContent.toLowerCase().includes(wanted)));
    });

    // Go to the voxel of a structure that lies nearest to the middle of all its voxels.
    const [across, up] = facts.shape;
    const voxels = (number, visit) => {
      for (let n = whole.indexOf(number); n >= 0; n = whole.indexOf(number, n + 1)) {
        visit(n % across, Math.floor(n / across) % up, Math.floor(n / (across * up)));
      }
    };
    const gone = (number) => {
      const sum = [0, 0, 0, 0];
      voxels(number, (i, j, k) => [i, j, k, 1].forEach((x, n) => (sum[n] += x)));
      if (sum[3] === 0) {
        spoken.textContent = `${facts.names[number]} is not among the labels shown`;
        return;
      }
      let best = null;
      let least = Infinity;
      voxels(number, (...at) => {
        const far = at.reduce((total, x, n) => total + (x - sum[n] / sum[3]) ** 2, 0);
        if (far < least) [best, least] = [at, far];
      });
      const mm = facts.affine.slice(0, 3).map((row) => row[0] * best[0] + row[1] * best[1] + row[2] * best[2] + row[3]);
      view.scene.crosshairPos = view.mm2frac(mm);
      view.drawScene();
      view.createOnLocationChange();
    };
    all("button[data-find]").forEach((b) => b.addEventListener("click", () => gone(Number(b.dataset.find))));

    // -- keys ----------------------------------------------------------------------------------------------------------
    const flip = (box) => {
      if (!box) return;
      box.checked = !box.checked;
      drawn();
    };
    const left = facts.radiological ? 1 : -1;
    const keys = {
      ArrowLeft: () => view.moveCrosshairInVox(left, 0, 0),
      ArrowRight: () => view.moveCrosshairInVox(-left, 0, 0),
      ArrowUp: () => view.moveCrosshairInVox(0, 1, 0),
      ArrowDown: () => view.moveCrosshairInVox(0, -1, 0),
      PageUp: () => view.moveCrosshairInVox(0, 0, 1),
      PageDown: () => view.moveCrosshairInVox(0, 0, -1),
      l: () => flip(shows),
      o: () => flip(outlines),
      u: () => flip(unsure),
      "[": () => stepped(-1),
      "]": () => stepped(1),
    };
    find(".canvas").addEventListener(
      "keydown",
      (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        event.stopPropagation(); // NiiVue has keys of its own, for what is not shown here
        const does = keys[event.key] ?? keys[event.key.toLowerCase()];
        if (does) {
          event.preventDefault();
          does();
        }
      },
      { capture: true },
    );
    find(".canvas").addEventListener("keyup", (event) => event.stopPropagation(), { capture: true });
  };

  // After the page itself was drawn.
  requestAnimationFrame(() =>
    setTimeout(async () => {
      try {
        await start();
        said.hidden = true;
        section.dataset.state = "ready";
      } catch (error) {
        said.textContent = `The viewer does not work here: ${error.message}. The pictures on this page are complete.`;
        section.dataset.state = "failed";
      }
    }),
  );
})();
