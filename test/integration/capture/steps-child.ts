// Does one change of rules, and dies by SIGKILL before or after the Nth program that changes something, or while that is
// about to; it is slow then, and outlives us.
import {findTool} from '../../../src/capture/find-tool.ts';
import {applyCapture, type CaptureDeps, removeCapture, runProgram} from '../../../src/capture/index.ts';
import {loadFrom} from '../../../src/cli/load.ts';
import {parsePlainFlags} from '../../../src/cli/plain-run.ts';
import {systemClock} from '../../../src/lifecycle/clock.ts';

const [command, moment, number, ...words] = process.argv.slice(2);
let left = Number(number);
const dieAt = (now: string, mine: number) => {
	if (now === moment && mine === 0) process.kill(process.pid, 'SIGKILL');
};

const changesSomething = (program: string, args: readonly string[]): boolean =>
	program.endsWith('-restore')
		? !args.includes('--test')
		: program === 'nft'
			? args[0] === '-f' || args[0] === 'delete'
			: args.includes('add') || args.includes('del');

const {config} = await loadFrom(parsePlainFlags(words)!);
const deps: CaptureDeps = {
	config: config.capture,
	clock: systemClock,
	run: async (...call) => {
		if (!changesSomething(call[0], call[1])) return runProgram(...call);
		const mine = --left;
		dieAt('before', mine);
		if (moment === 'during' && mine === 0) {
			setTimeout(dieAt, 100, 'during', 0);
			const [program, args, input] = call;
			return runProgram('sh', ['-c', 'sleep 1; exec "$0" "$@"', findTool(program)!, ...args], input);
		}
		const outcome = await runProgram(...call);
		dieAt('after', mine);
		return outcome;
	},
};
if (command === 'apply') await applyCapture(deps, new AbortController().signal, {isForced: true});
else await removeCapture(deps);
