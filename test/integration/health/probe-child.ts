// Runs probes where it is started, one after the other, and prints what they come to as a JSON list.
import {connect} from 'node:net';
import type {ProbeCheck} from '../../../src/config/index.ts';
import {runCheck} from '../../../src/health/check.ts';
import {systemClock} from '../../../src/lifecycle/index.ts';

/** What a probe would be that does not care where it comes from. */
function connectPlainly(host: string, port: number): Promise<string> {
	return new Promise(resolve => {
		const socket = connect(port, host, () => {
			socket.destroy();
			resolve('connected');
		});
		socket.once('error', error => resolve(error.message));
	});
}

const {checks, plain, host} = JSON.parse(process.argv[2]!) as {checks: ProbeCheck[]; plain: number[]; host: string};
const outcomes: (string | null)[] = [];
for (const check of checks)
	outcomes.push((await runCheck(check, host, 10_000, systemClock, new AbortController().signal)).outcome ?? null);
for (const port of plain) outcomes.push(await connectPlainly(host, port));
process.stdout.write(JSON.stringify(outcomes));
