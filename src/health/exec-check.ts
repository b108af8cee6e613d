import {runProgram} from '../lifecycle/program.ts';
import {ProbeFailure} from './failure.ts';

/** Of what it writes, for the message. */
const mostOutputBytes = 1024;

/** Runs a program, without a shell; exit code 0 is healthy. */
export async function checkExec(command: readonly string[], signal: AbortSignal): Promise<void> {
	const {code, killedBy, stdout, stderr} = await runProgram(command, mostOutputBytes, signal);
	if (code === 0) return;
	const said = `${stdout}${stderr}`.slice(0, mostOutputBytes).trim();
	throw new ProbeFailure(`${killedBy ? `ended by ${killedBy}` : `exit code ${code}`}${said && `: ${said}`}`);
}
