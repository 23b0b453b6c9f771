// The grid of blocks and nodes: a table whose last column is a track for each node. Vue escapes every text.
export default {
  props: { grid: Object, home: String, loads: Array, menus: Object },
  computed: {
    counts() { return this.grid.replicas.map((run) => run.count); },
    most() { return Math.max(1, ...this.counts); },
    spread() {
      const least = Math.min(...this.counts);
      return least === this.most ? `${least}` : `${least}–${this.most}`;
    },
    ticks() {
      const step = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048].find((one) => this.grid.num_blocks / one <= 8) || 4096;
      return Array.from({ length: Math.ceil(this.grid.num_blocks / step) }, (_, at) => at * step);
    },
  },
  methods: {
    place(start, stop) {
      const all = this.grid.num_blocks;
      return { left: `${(100 * start) / all}%`, width: `${(100 * (stop - start)) / all}%` };
    },
    menu(row) {
      return `mm-orders-${this.$.uid}-${row.peer}`;
    },
    address(row, order) {
      return `${this.home}peer/${encodeURIComponent(row.peer)}?order=${encodeURIComponent(order)}`;
    },
    kind(bar) {
      return ["mm-bar", `mm-${bar.state}`, bar.state === "serving" ? `mm-load-${bar.level}` : ""];
    },
  },
  template: `
    <div class="mm-grid-box">
      <table class="mm-grid" :style="{ '--blocks': grid.num_blocks }">
        <colgroup><col class="mm-col-name" /><col class="mm-col-state" /><col class="mm-col-trip" /><col /></colgroup>
        <thead>
          <tr>
            <th scope="col">node</th>
            <th scope="col">state</th>
            <th scope="col" class="mm-number">from here</th>
            <th scope="col" class="mm-wide">
              <span class="mm-only-read">blocks</span>
              <div class="mm-track mm-ticks" aria-hidden="true">
                <span v-for="tick in ticks" :key="tick" :style="place(tick, tick + 1)">{{ tick }}</span>
              </div>
            </th>
          </tr>
        </thead>
        <tbody>
          <tr v-if="grid.gaps.length" class="mm-gaps">
            <th scope="row">missing</th>
            <td>gap</td>
            <td></td>
            <td>
              <div class="mm-track">
                <span v-for="bar in grid.gaps" :key="bar.start" :class="kind(bar)" :style="place(bar.start, bar.stop)" :title="bar.text">
                  <span>{{ bar.start }}:{{ bar.stop }}</span>
                </span>
              </div>
            </td>
          </tr>
          <tr v-for="row in grid.rows" :key="row.peer" :class="{ 'mm-is-silent': row.state === 'silent' }">
            <th scope="row">
              <div class="mm-name">
                <a :href="home + 'peer/' + encodeURIComponent(row.peer)">{{ row.label }}</a>
                <template v-if="menus[row.peer]">
                  <button type="button" class="mm-dots" :popovertarget="menu(row)" :aria-label="'Orders to ' + row.label">⋯</button>
                  <div popover class="mm-menu" :id="menu(row)" role="group" :aria-label="'Orders to ' + row.label">
                    <b>{{ row.label }}</b>
                    <a v-for="order in menus[row.peer]" :key="order[0]" :href="address(row, order[0])">{{ order[1] }}…</a>
                  </div>
                </template>
              </div>
            </th>
            <td>{{ row.state }}</td>
            <td class="mm-number">{{ row.trip }}</td>
            <td>
              <div class="mm-track">
                <span v-for="bar in row.bars" :key="bar.start + bar.state" :class="kind(bar)" :style="place(bar.start, bar.stop)" :title="bar.text">
                  <span>{{ bar.start }}:{{ bar.stop }}<span class="mm-only-read">, {{ bar.text }}</span></span>
                </span>
              </div>
            </td>
          </tr>
          <tr class="mm-replicas">
            <th scope="row">nodes per block</th>
            <td></td>
            <td class="mm-number">{{ spread }}</td>
            <td>
              <div class="mm-track" aria-hidden="true">
                <span v-for="run in grid.replicas" :key="run.start" :class="['mm-count', run.count ? '' : 'mm-none']"
                  :style="{ ...place(run.start, run.stop), height: (100 * Math.max(run.count, 0.5)) / most + '%' }"></span>
              </div>
            </td>
          </tr>
        </tbody>
      </table>
    </div>`,
};
