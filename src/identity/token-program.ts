import {AgentError, reasonOf, systemCode} from '../errors.ts';
import {runProgram} from '../lifecycle/program.ts';

/** Longer than any metadata service takes, shorter than the wait for the control plane's answer. */
const timeoutMs = 10_000;
const mostStdoutBytes = 64 * 1024;
const mostSaidLength = 500;

/** Exit codes that have a meaning of their own. Source: sysexits.h */
const meanings: Readonly<Record<number, readonly [what: string, hint: string]>> = {
	75: ['it has none at the moment', 'it is asked again by itself'],
	77: ['it is not allowed to give one', 'give the machine, or the user of the agent, the right that it needs'],
	78: ['it is not set up', 'set it up as its own documentation says'],
};

/**
 * What a program prints on its standard output; its standard error is told when it fails, and nothing that looks like a
 * token is.
 * @throws AgentError identity.token_program
 */
export async function readFromProgram(command: readonly string[], signal: AbortSignal): Promise<string> {
	const file = command[0]!;
	const failed = (why: string, hint: string, cause?: unknown): AgentError =>
		new AgentError('identity.token_program', `get a token from ${file}: ${why}`, {cause, hint});
	const timeout = AbortSignal.timeout(timeoutMs);
	try {
		const {code, killedBy, stdout, stderr, isCut} = await runProgram(
			command,
			mostStdoutBytes,
			AbortSignal.any([signal, timeout]),
		);
		if (code === 0) {
			if (isCut)
				throw failed(`it wrote more than ${mostStdoutBytes} bytes`, 'have it print the token and nothing else');
			return stdout;
		}
		const said = redact(stderr.trim().slice(0, mostSaidLength));
		const [what, hint] = meanings[code ?? 0] ?? ['', `run it as the user of the agent to see why: ${file}`];
		const end = killedBy ? `ended by ${killedBy}` : `exit code ${code}`;
		throw failed([what, end, said].filter(text => text !== '').join(', '), hint);
	} catch (error) {
		if (error instanceof AgentError) throw error;
		signal.throwIfAborted();
		if (timeout.aborted)
			throw failed(`no end within ${timeoutMs / 1000} s, so it was killed`, 'see what it waits for', error);
		const code = systemCode(error);
		const hint =
			code === 'EACCES'
				? 'let the user of the agent execute it, and search its directories'
				: 'check identity.token-program: a program with its path, then its arguments, one each';
		throw failed(code === 'ENOENT' ? 'no such file' : reasonOf(error), hint, error);
	}
}

/** Parts of base64url that are long enough to be of a token. */
const redact = (text: string): string => text.replace(/[\w-]{16,}(?:\.[\w-]*){1,2}/g, '[redacted]');
