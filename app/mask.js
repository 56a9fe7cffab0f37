// The hole, at the picture's resolution. A box is { left, top, right, bottom } in px; right and bottom are exclusive.

export class Mask {
  /** holes: Uint8Array of width × height, row by row, 1 = hole. */
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.holes = new Uint8Array(width * height);
  }

  isEmpty() {
    return !this.holes.includes(1);
  }

  /** Set all pixels whose centre is within `radius` of the line from a to b, [x, y] each. Returns the box. */
  line([ax, ay], [bx, by], radius, value) {
    radius = Math.max(radius, 0.75); // even the finest brush draws a line without gaps
    const dx = bx - ax;
    const dy = by - ay;
    const length = Math.hypot(dx, dy);
    const box = this.#clip(Math.min(ax, bx) - radius, Math.min(ay, by) - radius, Math.max(ax, bx) + radius, Math.max(ay, by) + radius);
    for (let y = box.top; y < box.bottom; y++) {
      const cy = y + 0.5;
      let low = Infinity;
      let high = -Infinity;
      for (const [x, ey] of [[ax, ay], [bx, by]]) { // the round ends of the line
        const half = radius ** 2 - (cy - ey) ** 2;
        if (half >= 0) {
          low = Math.min(low, x - Math.sqrt(half));
          high = Math.max(high, x + Math.sqrt(half));
        }
      }
      if (length > 0) { // the band between the ends: |across| ≤ radius and 0 ≤ along ≤ length
        const across = between(dy, -(cy - ay) * dx - ax * dy, -radius * length, radius * length);
        const along = between(dx, (cy - ay) * dy - ax * dx, 0, length ** 2);
        const from = Math.max(across[0], along[0]);
        const to = Math.min(across[1], along[1]);
        if (from <= to) {
          low = Math.min(low, from);
          high = Math.max(high, to);
        }
      }
      this.#row(y, low, high, value);
    }
    return box;
  }

  /** Set a polygon of points [x, y], inside by the even-odd rule. Returns the box. */
  polygon(points, value) {
    const xs = points.map((point) => point[0]);
    const ys = points.map((point) => point[1]);
    const box = this.#clip(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys));
    for (let y = box.top; y < box.bottom; y++) {
      const cy = y + 0.5;
      const crossings = [];
      for (let i = 0; i < points.length; i++) {
        const [ax, ay] = points[i];
        const [bx, by] = points[(i + 1) % points.length];
        if (ay <= cy !== by <= cy) crossings.push(ax + ((cy - ay) / (by - ay)) * (bx - ax));
      }
      crossings.sort((a, b) => a - b);
      for (let i = 0; i + 1 < crossings.length; i += 2) this.#row(y, crossings[i], crossings[i + 1], value);
    }
    return box;
  }

  /** Dilate the hole by n px. */
  widen(n) {
    const { width, height, holes } = this;
    const grown = holes.slice();
    const reach = Array.from({ length: n + 1 }, (_, dy) => Math.floor(Math.sqrt(n * n - dy * dy)));
    for (let y = 0; y < height; y++) {
      const row = holes.subarray(y * width, (y + 1) * width);
      for (let from = row.indexOf(1); from >= 0; ) {
        let to = row.indexOf(0, from);
        if (to < 0) to = width;
        for (let dy = -n; dy <= n; dy++) {
          if (y + dy < 0 || y + dy >= height) continue;
          const start = (y + dy) * width;
          const dx = reach[Math.abs(dy)];
          grown.fill(1, start + Math.max(0, from - dx), start + Math.min(width, to + dx));
        }
        from = row.indexOf(1, to);
      }
    }
    this.holes = grown;
  }

  /** Return the smallest box that contains all differences to `before`, or null. */
  changed(before) {
    const { width, height, holes } = this;
    let [left, top, right, bottom] = [width, height, 0, 0];
    for (let y = 0; y < height; y++) {
      let x = 0;
      const row = y * width;
      while (x < width && holes[row + x] === before[row + x]) x++;
      if (x === width) continue;
      let end = width;
      while (holes[row + end - 1] === before[row + end - 1]) end--;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, end), y + 1];
    }
    return right ? { left, top, right, bottom } : null;
  }

  /** Replace the pixels of a box with `pixels`, an array of the box's size. Returns the previous pixels. */
  exchange({ left, top, right, bottom }, pixels) {
    const before = cut(this.holes, this.width, { left, top, right, bottom });
    for (let y = top, i = 0; y < bottom; y++, i += right - left) {
      this.holes.set(pixels.subarray(i, i + right - left), y * this.width + left);
    }
    return before;
  }

  #row(y, low, high, value) {
    const from = Math.max(0, Math.ceil(low - 0.5));
    const to = Math.min(this.width - 1, Math.floor(high - 0.5));
    if (from <= to) this.holes.fill(value, y * this.width + from, y * this.width + to + 1);
  }

  #clip(left, top, right, bottom) {
    const within = (value, most) => Math.min(Math.max(value, 0), most);
    return {
      left: within(Math.floor(left), this.width),
      top: within(Math.floor(top), this.height),
      right: within(Math.ceil(right), this.width),
      bottom: within(Math.ceil(bottom), this.height),
    };
  }
}

/** Return a box of an array whose rows have `width` pixels. */
export function cut(pixels, width, { left, top, right, bottom }) {
  const part = new Uint8Array((right - left) * (bottom - top));
  for (let y = top, i = 0; y < bottom; y++, i += right - left) {
    part.set(pixels.subarray(y * width + left, y * width + right), i);
  }
  return part;
}

/** Return the interval of x where low ≤ slope · x + offset ≤ high. */
function between(slope, offset, low, high) {
  if (slope === 0) return low <= offset && offset <= high ? [-Infinity, Infinity] : [Infinity, -Infinity];
  const ends = [(low - offset) / slope, (high - offset) / slope];
  return slope > 0 ? ends : ends.reverse();
}
