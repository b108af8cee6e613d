import {execFile} from 'node:child_process';
import {readFile} from 'node:fs/promises';
import {AgentError, systemCode} from '../../errors.ts';

/** What an admin starts and stops; other units may hang on it. */
const service = 'onramp.service';
/** Of the package istio-sidecar. */
export const istioService = 'istio.service';
const captureService = 'onramp-capture.service';

/** The service manager of this machine, as far as `join` needs it. */
export interface ServiceManager {
	/** Whether there is a service to hand over to. */
	hasService(): Promise<boolean>;
	/** The unit of ours that a process belongs to; undefined for one that somebody runs by hand. */
	unitOf(pid: number): Promise<string | undefined>;
	/** Has the service started at boot; true if it was not so before. @throws AgentError `cli.service_failed` */
	enable(): Promise<boolean>;
	/** Starts a unit, or starts it anew; returns when that is under way. @throws AgentError `cli.service_failed` */
	restart(unit?: string): Promise<void>;
	/** What became of the rules, which follow the agent; undefined where they are not a unit's. */
	capture(waitMs: number): Promise<'active' | 'activating' | 'failed' | undefined>;
	/** Why the service will not come up by itself, or undefined. */
	failure(): Promise<string | undefined>;
}

interface Outcome {
	readonly code: number | string;
	readonly stdout: string;
	readonly stderr: string;
}

export const systemd: ServiceManager = {
	hasService: async () => (await show('LoadState')) === 'loaded',
	unitOf: async pid => {
		const cgroup = await readFile(`/proc/${pid}/cgroup`, 'utf8').catch((error: unknown) => {
			// It has ended, or is hidden from us: then it is nothing we could restart.
			if (systemCode(error)) return '';
			throw error;
		});
		return /\/(onramp[\w@-]*\.service)(?:\/|$)/m.exec(cgroup)?.[1];
	},
	enable: async () => {
		if ((await systemctl('is-enabled', service)).stdout.trim() === 'enabled') return false;
		await demand('enable', service);
		return true;
	},
	// Without waiting, since a unit of Type=notify is only up once it is ready, and there is more to say until then.
	restart: async (unit = service) => {
		await demand('restart', '--no-block', unit);
	},
	capture: async waitMs => {
		if ((await show('LoadState', captureService)) !== 'loaded') return undefined;
		const deadlineMs = performance.now() + waitMs;
		for (;;) {
			const state = await stateOfCapture();
			if (state === 'active' || state === 'failed') return state;
			if (performance.now() > deadlineMs) return 'activating';
			await new Promise(resolve => setTimeout(resolve, 100));
		}
	},
	failure: async () => {
		const failed = (await systemctl('is-failed', 'onramp-agent.service', service)).stdout.split('\n');
		if (failed.includes('failed')) return 'the service has failed';
		return (await stateOfCapture()) === 'failed' ? 'the rules of traffic capture could not be put in' : undefined;
	},
};

/** It may have failed before, and be about to be started once more. */
async function stateOfCapture(): Promise<string | undefined> {
	const {code, stdout} = await systemctl('show', '--property=ActiveState', '--property=Job', captureService);
	if (code !== 0) return undefined;
	const state = /^ActiveState=(.*)$/m.exec(stdout)?.[1];
	return /^Job=[1-9]/m.test(stdout) ? 'activating' : state;
}

/** A property of a unit; undefined where there is no systemd, or none that runs. */
export async function show(property: string, unit = service): Promise<string | undefined> {
	const {code, stdout} = await systemctl('show', `--property=${property}`, unit);
	return code === 0 ? stdout.trim().slice(property.length + 1) : undefined;
}

/** @throws AgentError `cli.service_failed` */
export async function demand(...words: string[]): Promise<void> {
	const {code, stderr} = await systemctl(...words);
	if (code === 0) return;
	const line = ['systemctl', ...words].join(' ');
	throw new AgentError('cli.service_failed', `${line}: ${stderr.trim().split('\n').at(-1) || `exit code ${code}`}`, {
		hint: 'run it as root; if the unit is masked or damaged: systemctl status onramp',
	});
}

function systemctl(...words: string[]): Promise<Outcome> {
	return new Promise(resolve => {
		const child = execFile('systemctl', words, {timeout: 90_000}, (error, stdout, stderr) => {
			const code = child.exitCode ?? systemCode(error) ?? 'signal';
			resolve({code, stdout, stderr: stderr || (error?.message ?? '')});
		});
	});
}
