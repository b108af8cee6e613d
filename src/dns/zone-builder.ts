import type {NameTable} from './name-table.ts';
import {buildZone, type Zone, type ZoneSettings} from './zone.ts';

/** The event loop is not kept from questions for longer than this. */
const stepMs = 4;

/** Builds zones behind the scenes, the newest only; a small one is done at once. */
export class ZoneBuilder {
	readonly #settings: ZoneSettings;
	readonly #onZone: (zone: Zone) => void;
	#current: Generator<void, Zone> | undefined;

	constructor(settings: ZoneSettings, onZone: (zone: Zone) => void) {
		this.#settings = settings;
		this.#onZone = onZone;
	}

	build(table: NameTable): void {
		const building = buildZone(table, this.#settings);
		this.#current = building;
		this.#work(building);
	}

	stop(): void {
		this.#current = undefined;
	}

	#work(building: Generator<void, Zone>): void {
		const untilMs = performance.now() + stepMs;
		while (building === this.#current) {
			const {done, value} = building.next();
			if (done) {
				this.#current = undefined;
				this.#onZone(value);
			} else if (performance.now() >= untilMs) {
				setImmediate(() => this.#work(building));
				return;
			}
		}
	}
}
