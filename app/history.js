// Undo and redo. A step is { undo(), redo(), cost }. cost: bytes; it bounds the memory of the history.

const MOST_STEPS = 200;
const MOST_BYTES = 400e6;

export class History {
  constructor(onChange) {
    this.onChange = onChange;
    this.clear();
  }

  clear() {
    this.done = [];
    this.undone = [];
    this.onChange(this);
  }

  /** Add a step that has just been made. */
  add(step) {
    this.done.push(step);
    this.undone = [];
    let bytes = this.done.reduce((sum, { cost }) => sum + cost, 0);
    while (this.done.length > 1 && (this.done.length > MOST_STEPS || bytes > MOST_BYTES)) bytes -= this.done.shift().cost;
    this.onChange(this);
  }

  undo() {
    const step = this.done.pop();
    step?.undo();
    if (step) this.undone.push(step);
    this.onChange(this);
    return step;
  }

  redo() {
    const step = this.undone.pop();
    step?.redo();
    if (step) this.done.push(step);
    this.onChange(this);
    return step;
  }
}
