import type {Clock, Gate} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {AdminClient} from './admin.ts';
import {monitorEnvoy, Nudge, type Verdict} from './monitor.ts';
import type {ProxyState} from './types.ts';

export interface ExternalDeps {
	readonly adminSocketPath: string;
	readonly gate: Gate;
	readonly log: Logger;
	readonly clock: Clock;
}

/** Watches an Envoy that another supervisor runs (a systemd unit), by its admin socket alone. */
export class ExternalWatch {
	readonly admin: AdminClient;
	readonly #deps: ExternalDeps;
	readonly #stopping = new AbortController();
	#state: ProxyState = 'starting';
	#since: Date;
	#version: string | undefined;
	readonly #nudge = new Nudge();

	constructor(deps: ExternalDeps) {
		this.#deps = deps;
		this.#since = deps.clock.now();
		this.admin = new AdminClient(deps.adminSocketPath);
	}

	get state(): {state: ProxyState; since: Date; version: string | undefined} {
		return {state: this.#state, since: this.#since, version: this.#version};
	}

	async run(): Promise<void> {
		const {gate, clock, log} = this.#deps;
		gate.close('waits for envoy, which another supervisor starts');
		const onVerdict = (verdict: Verdict) => {
			if (this.#state === 'draining') return;
			if (!verdict.isReady) {
				this.#enter('starting');
				gate.close(verdict.reason, verdict.hint ?? 'is it running? systemctl status for its unit');
				return;
			}
			if (this.#state !== 'running') log.info({version: this.#version}, 'envoy ready');
			this.#enter('running');
			gate.open('envoy serves');
		};
		const onInfo = ({version}: {version: string}) => {
			this.#version = version;
		};
		await monitorEnvoy({admin: this.admin, clock, nudge: this.#nudge, onInfo, onVerdict}, this.#stopping.signal);
	}

	lookNow(): void {
		if (this.#state !== 'running') this.#nudge.give();
	}

	noteDraining(): void {
		this.#enter('draining');
		this.#deps.gate.close('envoy drains');
	}

	stop(): void {
		this.#stopping.abort();
		this.#enter('stopped');
	}

	#enter(state: ProxyState): void {
		if (this.#state !== state) this.#since = this.#deps.clock.now();
		this.#state = state;
	}
}
