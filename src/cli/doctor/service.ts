import {execFile} from 'node:child_process';
import {type Check, type Finding, fail, ok, skip, warn} from './types.ts';

interface Unit {
	readonly Id: string;
	readonly LoadState: string;
	readonly ActiveState: string;
	readonly SubState: string;
	readonly Result: string;
	readonly NRestarts: string;
	readonly UnitFileState: string;
}

const properties = ['Id', 'LoadState', 'ActiveState', 'SubState', 'Result', 'NRestarts', 'UnitFileState'];

const envoys: readonly string[] = ['onramp-envoy@a.service', 'onramp-envoy@b.service'];
const names = ['onramp.service', 'onramp-agent.service', ...envoys, 'onramp-capture.service'];

/** The state of our units, where there are some. */
export const service: Check = {
	name: 'service',
	run: async (): Promise<readonly Finding[]> => {
		const units = (await show()).filter(({LoadState}) => LoadState !== 'not-found');
		if (units.length === 0) return [skip('no unit of ours is installed, or no systemd runs')];
		// One of them rests, unless it takes over from the other.
		const isServed = units.some(({Id, ActiveState}) => envoys.includes(Id) && ActiveState === 'active');
		const rests = ({Id, ActiveState}: Unit) => isServed && envoys.includes(Id) && ActiveState === 'inactive';
		const isStarted = units.some(({Id, ActiveState}) => Id === 'onramp.service' && ActiveState === 'active');
		return units.filter(unit => !rests(unit)).map(unit => judge(unit, isStarted));
	},
};

/** Whether units run our Envoy, with or without an agent. */
export const isEnvoyServed = async (): Promise<boolean> =>
	(await show()).some(({Id, ActiveState}) => envoys.includes(Id) && ActiveState === 'active');

/** @param isStarted - so that what does not run has been stopped alone, or waits */
function judge(unit: Unit, isStarted: boolean): Finding {
	const {Id, LoadState, ActiveState, SubState, Result, NRestarts, UnitFileState} = unit;
	if (LoadState !== 'loaded') return fail(`${Id} is ${LoadState}`, `systemctl status ${Id}; systemctl unmask ${Id}`);
	const state = `${Id} is ${ActiveState} (${SubState})`;
	if (ActiveState === 'failed')
		return fail(
			`${state}: ${Result}; it is not started again by itself`,
			`journalctl -u ${Id} -n 50; once it is mended: systemctl restart onramp`,
		);
	if (SubState === 'auto-restart')
		return fail(`${state}: ${Result}`, `it ends again and again: journalctl -u ${Id} -n 50`);
	if (ActiveState === 'activating') return warn(state, `what it waits for: systemctl status ${Id}`);
	if (ActiveState !== 'active')
		return warn(state, isStarted ? `systemctl start ${Id}` : 'onramp join BUNDLE, or systemctl enable --now onramp');
	if (Number(NRestarts) > 0) return warn(`${state}, restarted ${NRestarts} times`, `journalctl -u ${Id}`);
	if (UnitFileState === 'disabled') return warn(`${state}, and will not start at boot`, 'systemctl enable onramp');
	return ok(state);
}

function show(): Promise<Unit[]> {
	const words = ['show', `--property=${properties.join(',')}`, ...names];
	return new Promise(resolve => {
		execFile('systemctl', words, {timeout: 10_000}, (error, stdout) => {
			const blocks = error ? [] : stdout.trim().split(/\n\n+/);
			resolve(blocks.map(block => Object.fromEntries(block.split('\n').map(splitAtSign)) as unknown as Unit));
		});
	});
}

const splitAtSign = (line: string): [string, string] => {
	const sign = line.indexOf('=');
	return [line.slice(0, sign), line.slice(sign + 1)];
};
