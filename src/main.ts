import {parsePlainFlags} from './cli/plain-run.ts';
import {AgentError, exitCodeOf, reasonOf} from './errors.ts';
import {isJournal} from './journal.ts';

/** What a person sees of a failure: the message, then what to do. Stack traces are for bugs. */
function report(error: unknown): void {
	// Our own errors say all in one sentence, causes included.
	const reason = error instanceof AgentError ? error.message : reasonOf(error);
	const lines = [`onramp: ${reason}`];
	if (error instanceof AgentError) {
		if (error.hint && !reason.includes(error.hint)) lines.push(`  → ${error.hint}`);
	} else if (error instanceof Error) {
		lines.push(error.stack ?? '');
	}
	const text = lines.join('\n');
	// In the journal each line is an entry, whose priority is asked for (`journalctl -p err`).
	process.stderr.write(`${isJournal(2) ? text.replace(/^/gm, '<3>') : text}\n`);
}

/** The release the packages bring and the tests run on; older ones lack what certificates are checked with. */
const oldestNode = 24;
if (Number.parseInt(process.versions.node, 10) < oldestNode) {
	process.stderr.write(
		`onramp: needs Node ${oldestNode} or later, this is ${process.version}\n  → in a checkout, npx onramp uses the right one\n`,
	);
	process.exit(78);
}

const shutdown = new AbortController();
for (const name of ['SIGTERM', 'SIGINT'] as const) {
	process.on(name, () => {
		// The second signal means "now": Envoy and the state on disk can take it.
		if (shutdown.signal.aborted) process.exit(1);
		shutdown.abort(new Error(name));
	});
}

function endBySignal(name: string): void {
	process.stderr.write(`onramp: given up: ${name}\n`);
	process.removeAllListeners(name);
	process.kill(process.pid, name);
}

/** What a service runs is taken straight; the parser, its help and the other commands are loaded for people. */
async function runCommandLine(argv: readonly string[], signal: AbortSignal): Promise<number> {
	const [command, ...words] = argv;
	if (command === 'run') {
		const flags = parsePlainFlags(words);
		if (flags) return (await import('./cli/run.ts')).runCommand.run(flags, signal);
	}
	if (command === 'capture') {
		const {captureCommand} = await import('./cli/capture.ts');
		const {plain, run} = captureCommand.commands.find(({usage}) => usage === words[0]) ?? {};
		const flags = plain && parsePlainFlags(words.slice(1), plain);
		if (flags) return run!(flags, signal);
	}
	const {runCli} = await import('./cli/index.ts');
	return runCli(argv, signal);
}

runCommandLine(process.argv.slice(2), shutdown.signal).then(
	code => process.exit(code),
	(error: unknown) => {
		// Given up as asked; whoever asked is told so by the signal, as by any program.
		if (shutdown.signal.aborted && error === shutdown.signal.reason) return endBySignal(reasonOf(error));
		report(error);
		process.exit(exitCodeOf(error));
	},
);
