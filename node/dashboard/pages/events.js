// The list of events, the newest first. Vue escapes every text.
export default {
  props: { lines: Array },
  template: `
    <ol class="mm-events" aria-live="polite" aria-relevant="additions">
      <li v-for="line in lines" :key="line.number" :class="'mm-event-' + line.kind">
        <time :datetime="line.at">{{ line.clock }}</time>
        <b>{{ line.kind }}</b>
        <span>{{ line.text }}</span>
      </li>
      <li v-if="!lines.length" class="mm-quiet">Nothing has changed since this page was opened for the first time.</li>
    </ol>`,
};
