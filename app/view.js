// The display: picture, red overlay on the hole, zoom and comparison. Lengths are CSS px of the stage.

const VEIL = 0x8c2828f0; // colour of the overlay in putImageData's order: alpha, blue, green, red
const CLOSEST = 40; // largest zoom: screen px per image pixel

export class View {
  constructor(stage, onZoom) {
    this.stage = stage;
    this.onZoom = onZoom;
    this.picture = stage.querySelector("#picture").getContext("2d");
    this.veil = stage.querySelector("#veil").getContext("2d");
    this.photo = null; // ImageBitmap, the original
    this.current = null; // canvas, with all edits
    this.mask = null;
    this.compare = "off"; // "off" | "before" | "slider" | "side"
    this.split = 0.5;
    this.#squares();
    new ResizeObserver(() => this.#resize()).observe(stage);
  }

  show(photo, current, mask) {
    Object.assign(this, { photo, current, mask });
    this.fit();
  }

  /** Return the position of a pointer event in the picture, px. */
  place({ clientX, clientY }) {
    const { left, top } = this.stage.getBoundingClientRect();
    return [(clientX - left - this.x) / this.zoom, (clientY - top - this.y) / this.zoom];
  }

  fit() {
    if (!this.current) return;
    const [width, height] = [this.#paneWidth(), this.stage.clientHeight];
    this.zoom = Math.min(width / this.current.width, height / this.current.height, 8) * 0.96;
    this.fitted = true;
    this.#center(width, height);
  }

  /** Set the zoom factor. The point (x, y) of the stage, by default its centre, stays fixed. */
  zoomTo(zoom, x = this.#paneWidth() / 2, y = this.stage.clientHeight / 2) {
    if (!this.current) return;
    const smallest = Math.min(0.02, this.stage.clientWidth / this.current.width / 2);
    zoom = Math.min(Math.max(zoom, smallest), CLOSEST);
    this.x = x - ((x - this.x) * zoom) / this.zoom;
    this.y = y - ((y - this.y) * zoom) / this.zoom;
    this.zoom = zoom;
    this.fitted = false;
    this.move(0, 0);
  }

  move(dx, dy) {
    if (!this.current) return;
    const within = (value, size, room) => Math.min(Math.max(value, 40 - size), room - 40); // part of the picture stays visible
    this.x = within(this.x + dx, this.current.width * this.zoom, this.#paneWidth());
    this.y = within(this.y + dy, this.current.height * this.zoom, this.stage.clientHeight);
    if (dx || dy) this.fitted = false;
    this.draw();
    this.onZoom(this.zoom);
  }

  setCompare(compare) {
    const pane = this.#paneWidth();
    this.compare = compare;
    if (this.fitted && this.#paneWidth() !== pane) this.fit();
    this.draw();
  }

  /** Request a redraw. Several calls cause one redraw per frame. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (!this.current) return;
      this.#drawPicture();
      this.drawVeil();
    });
  }

  /** Redraw the overlay at the screen's resolution, only within `box` if given. */
  drawVeil(box) {
    const { veil, mask, zoom, x, y, ratio } = this;
    const { width, height } = veil.canvas;
    if (!mask) return;
    if (this.compare !== "off") {
      veil.clearRect(0, 0, width, height);
      return;
    }
    const { left, top, right, bottom } = box ?? { left: 0, top: 0, right: mask.width, bottom: mask.height };
    const from = (value, offset, most) => Math.min(Math.max(Math.floor((value * zoom + offset) * ratio), 0), most);
    const to = (value, offset, most) => Math.min(Math.max(Math.ceil((value * zoom + offset) * ratio), 0), most);
    const [x0, y0, x1, y1] = [from(left, x, width), from(top, y, height), to(right, x, width), to(bottom, y, height)];
    if (!box) veil.clearRect(0, 0, width, height);
    if (x0 >= x1 || y0 >= y1) return;
    const image = veil.createImageData(x1 - x0, y1 - y0);
    const pixels = new Uint32Array(image.data.buffer);
    const columns = Int32Array.from({ length: x1 - x0 }, (_, i) => Math.floor(((x0 + i + 0.5) / ratio - x) / zoom));
    const valid = columns.map((column) => (column >= 0 && column < mask.width ? column : -1));
    for (let j = 0, i = 0; j < y1 - y0; j++) {
      const row = Math.floor(((y0 + j + 0.5) / ratio - y) / zoom);
      if (row < 0 || row >= mask.height) {
        i += valid.length;
        continue;
      }
      const start = row * mask.width;
      for (let k = 0; k < valid.length; k++, i++) {
        if (valid[k] >= 0 && mask.holes[start + valid[k]]) pixels[i] = VEIL;
      }
    }
    veil.putImageData(image, x0, y0);
  }

  #drawPicture() {
    const { picture, current, photo, ratio, compare } = this;
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    picture.setTransform(ratio, 0, 0, ratio, 0, 0);
    picture.clearRect(0, 0, width, height);
    if (compare === "off") this.#drawPane(current, 0, 0, width);
    if (compare === "before") this.#drawPane(photo, 0, 0, width);
    if (compare === "slider") {
      const at = this.split * width;
      this.#drawPane(photo, 0, 0, at);
      this.#drawPane(current, 0, at, width);
      this.#line(at, height);
    }
    if (compare === "side") {
      this.#drawPane(photo, 0, 0, width / 2);
      this.#drawPane(current, width / 2, width / 2, width);
      this.#line(width / 2, height);
    }
  }

  /** Draw a picture, shifted by `offset`, between two x coordinates of the stage. */
  #drawPane(image, offset, from, to) {
    const { picture, zoom, ratio } = this;
    picture.save();
    picture.setTransform(ratio, 0, 0, ratio, 0, 0);
    picture.beginPath();
    picture.rect(from, 0, to - from, this.stage.clientHeight);
    picture.clip();
    picture.translate(offset + this.x, this.y);
    const [width, height] = [image.width * zoom, image.height * zoom];
    picture.fillStyle = this.squares; // visible where the picture is transparent
    picture.fillRect(0, 0, width, height);
    picture.imageSmoothingEnabled = zoom * ratio < 2;
    picture.imageSmoothingQuality = zoom * ratio < 0.6 ? "medium" : "low";
    picture.drawImage(image, 0, 0, width, height);
    picture.restore();
  }

  #line(x, height) {
    this.picture.fillStyle = "#fff";
    this.picture.fillRect(x - 1.5, 0, 3, height);
    this.picture.fillStyle = "#000";
    this.picture.fillRect(x - 0.5, 0, 1, height);
  }

  #paneWidth() {
    return this.stage.clientWidth / (this.compare === "side" ? 2 : 1);
  }

  #center(width, height) {
    this.x = (width - this.current.width * this.zoom) / 2;
    this.y = (height - this.current.height * this.zoom) / 2;
    this.draw();
    this.onZoom(this.zoom);
  }

  #resize() {
    this.ratio = window.devicePixelRatio || 1;
    for (const { canvas } of [this.picture, this.veil]) {
      canvas.width = Math.round(this.stage.clientWidth * this.ratio);
      canvas.height = Math.round(this.stage.clientHeight * this.ratio);
    }
    if (this.fitted) this.fit();
    else this.move(0, 0);
  }

  #squares() {
    const tile = new OffscreenCanvas(16, 16);
    const context = tile.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, 16, 16);
    context.fillStyle = "#ccc";
    context.fillRect(0, 0, 8, 8);
    context.fillRect(8, 8, 8, 8);
    this.squares = this.picture.createPattern(tile, "repeat");
  }
}
