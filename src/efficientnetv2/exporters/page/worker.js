// Predicts with model.onnx in the browser. The page sends a file and gets a prediction; without a file, the model.
const TOP = 5;  // classes of a prediction, as the server returns
const MIN_LABEL = 0.5;  // probability of a label of a multi-label model, as in classify.py
const MARGIN = 3;  // times the size that the model needs: as much remains after pixels are averaged in blocks

async function read(name) {
  const response = await fetch(name, { cache: "no-cache" });
  if (!response.ok) throw new Error(name + ": HTTP status " + response.status);
  return response.arrayBuffer();
}

async function load() {
  const { env, InferenceSession, Tensor } = await import("./onnxruntime-web/ort.wasm.bundle.min.js");
  const names = ["model.json", "model.onnx", "onnxruntime-web/ort-wasm-simd-threaded.wasm"];
  const [info, model, wasm] = await Promise.all(names.map(read));
  env.wasm.wasmBinary = wasm;
  const session = await InferenceSession.create(new Uint8Array(model));
  return { info: JSON.parse(new TextDecoder().decode(info)), session, Tensor };
}

// RGB levels (1, rows, columns, 3). The canvas has the rows of one block, as phones limit its size.
async function decode(file, { image_size, crop_mode, crop_pct }) {
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = image;
  const side = crop_mode === "border" ? Math.max(width, height) : Math.min(width, height);
  const block = Math.min(width, height, Math.max(1, Math.floor(crop_pct * side / (MARGIN * image_size))));
  const columns = Math.floor(width / block), rows = Math.floor(height / block);
  const left = (width - columns * block) >> 1, top = (height - rows * block) >> 1;
  const context = new OffscreenCanvas(columns * block, block).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";  // under transparent pixels
  const levels = new Uint8Array(rows * columns * 3), sums = new Uint32Array(columns * 3);
  for (let row = 0; row < rows; row++) {
    context.fillRect(0, 0, columns * block, block);
    context.drawImage(image, -left, -top - row * block);
    const { data } = context.getImageData(0, 0, columns * block, block);
    sums.fill(0);
    for (let pixel = 0; pixel < data.length / 4; pixel++) {
      const place = 3 * Math.floor(pixel % (columns * block) / block);
      for (let channel = 0; channel < 3; channel++) sums[place + channel] += data[4 * pixel + channel];
    }
    for (let place = 0; place < sums.length; place++) {
      levels[row * sums.length + place] = Math.round(sums[place] / (block * block));
    }
  }
  image.close();
  return { levels, shape: [1, rows, columns, 3] };
}

const loaded = load();

async function respond(file) {
  const { info, Tensor, session } = await loaded;
  if (!file) return { name: info.architecture || "model", num_classes: info.names.length };
  const { levels, shape } = await decode(file, info);
  const images = new Tensor("uint8", levels, shape);
  const { data } = (await session.run({ images }, ["probabilities"])).probabilities;
  const order = [...data.keys()].sort((one, other) => data[other] - data[one]);
  const top = order.slice(0, TOP).map((place) => ({ label: info.names[place], probability: data[place] }));
  const assigned = info.problem_type.startsWith("multi") ? order.filter((place) => data[place] >= MIN_LABEL) : [order[0]];
  return { ...top[0], labels: assigned.map((place) => info.names[place]), top };
}

self.onmessage = async ({ data, ports }) => {
  ports[0].postMessage(await respond(data).catch((error) => ({ error: error.message || String(error) })));
};
