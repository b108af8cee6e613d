import {
	applyCapture,
	awaitTrial,
	type CaptureDeps,
	checkCapture,
	confirmPending,
	describeEnded,
	describeOlder,
	failureOfUnit,
	findOlder,
	guardChange,
	Kernel,
	noteFailure,
	type Pending,
	performStep,
	placesIn,
	planCapture,
	prepareCapture,
	probesFor,
	probeThrough,
	proxyPortsOf,
	type Rollback,
	readJson,
	readSockets,
	removeCapture,
	renderText,
	rolledBack,
	runProgram,
	type StepRequest,
	undoCapture,
	verifyCapture,
	watchCapture,
} from '../capture/index.ts';
import type {Config} from '../config/index.ts';
import {AgentError} from '../errors.ts';
import {systemClock} from '../lifecycle/clock.ts';
import type {Command, CommandGroup, Flags} from './index.ts';

/** Loaded late, so that the kernel can be asked before. */
const readSettings = async (flags: Flags): Promise<Config> =>
	(await (await import('./load.ts')).loadFrom(flags)).config;

const say = (text: string): boolean => process.stdout.write(`${text}\n`);

async function depsFrom(flags: Flags): Promise<CaptureDeps> {
	const config = await readSettings(flags);
	return {config: config.capture, run: runProgram, clock: systemClock};
}

function refuseIfDisabled({config}: CaptureDeps): void {
	if (config.isEnabled) return;
	throw new AgentError(
		'config.invalid',
		'capture is switched off by capture.enabled, or ISTIO_CUSTOM_IP_TABLES of the bundle',
		{
			hint: 'set capture.enabled to true if the rules are to be made by onramp',
		},
	);
}

/** A plan for iptables differs from one for nft, which can say more. */
function wayOf(format: string, wanted: CaptureDeps['config']['backend']): CaptureDeps['config']['backend'] {
	if (format === 'nft') return 'nft';
	if (format === 'iptables') return wanted === 'iptables-legacy' ? wanted : 'iptables-nft';
	return wanted;
}

const plan: Command = {
	usage: 'plan',
	description: 'Show the rules that apply would load, each with its reason; change nothing',
	hasSettings: true,
	plain: {format: ['text', 'nft', 'iptables', 'json']},
	options: yargs =>
		yargs.option('format', {
			type: 'string',
			requiresArg: true,
			choices: ['text', 'nft', 'iptables', 'json'],
			default: 'text',
			description: 'text, json, or the very text for nft or iptables-restore',
		}),
	run: async ({format = 'text', ...flags}) => {
		const deps = await depsFrom(flags);
		const {
			plan: planned,
			backend,
			host,
			kernel,
		} = await prepareCapture(deps, planCapture, wayOf(String(format), deps.config.backend));
		if (format === 'json') say(JSON.stringify({backend: backend.name, facts: host, ...planned}, undefined, '\t'));
		else process.stdout.write(format === 'text' ? renderText(planned) : await backend.render(planned, kernel));
		return 0;
	},
};

const apply: Command = {
	usage: 'apply',
	description: 'Lead the traffic of this machine through Envoy; safe to repeat',
	hasSettings: true,
	plain: {
		force: 'boolean',
		'take-over': 'boolean',
		'if-enabled': 'boolean',
		trial: 'value',
		confirm: 'value',
		'confirm-by': ['person', 'probes'],
	},
	options: yargs =>
		yargs
			.option('confirm', {
				type: 'string',
				requiresArg: true,
				description: 'Undo the change unless "onramp capture confirm" is said within this time, as in 60s',
			})
			.option('confirm-by', {
				type: 'string',
				requiresArg: true,
				choices: ['person', 'probes'],
				default: 'person',
				description: 'probes: confirm once all that worked before works after',
			})
			.option('trial', {
				type: 'string',
				requiresArg: true,
				description: 'As --confirm with --confirm-by probes, but only for rules that have not held here before',
			})
			.option('take-over', {type: 'boolean', description: "Take the rules of Istio's own tool away"})
			.option('if-enabled', {
				type: 'boolean',
				description: 'Where capture is switched off, do nothing rather than fail',
			})
			.option('force', {type: 'boolean', description: 'Do not look whether Envoy and DNS answer'}),
	run: async (
		{force, confirm, trial, 'confirm-by': confirmBy, 'take-over': takeOver, 'if-enabled': ifEnabled, ...flags},
		signal,
	) => {
		// What the kernel has is told while the settings are read: either takes as long.
		const kernel = new Kernel(runProgram).ask();
		const config = await readSettings(flags);
		const deps: CaptureDeps = {config: config.capture, run: runProgram, clock: systemClock, kernel};
		if (ifEnabled === true && !config.capture.isEnabled) {
			say('capture: switched off by the configuration; nothing was done');
			return 0;
		}
		refuseIfDisabled(deps);
		try {
			return await applyAsAsked(deps, config, signal, {
				isForced: force === true,
				isTakeOver: takeOver === true,
				option: trial === undefined ? 'confirm' : 'trial',
				limit: trial ?? confirm,
				isByProbes: confirmBy === 'probes',
			});
		} catch (error) {
			await noteFailure(config.capture, error);
			throw error;
		}
	},
};

interface Asked {
	readonly isForced: boolean;
	readonly isTakeOver: boolean;
	readonly option: 'confirm' | 'trial';
	/** Of the trial; undefined = there is none. */
	readonly limit: unknown;
	readonly isByProbes: boolean;
}

async function applyAsAsked(
	deps: CaptureDeps,
	config: Config,
	signal: AbortSignal,
	{isForced, isTakeOver, option, limit, isByProbes}: Asked,
): Promise<number> {
	const confirmMs = limit === undefined ? undefined : parseConfirm(option, String(limit));
	const {
		backend,
		plan: planned,
		isChanged,
		isOnTrial,
		notes,
	} = await applyCapture(deps, signal, {
		isForced,
		isTakeOver,
		...(confirmMs === undefined
			? {}
			: {
					confirm: {
						confirmMs,
						command: [process.execPath, ...process.execArgv, process.argv[1]!],
						isOnlyNew: option === 'trial',
						probes: probesFor(config.capture, {
							controlPlane: config.controlPlane.endpoints,
							address: config.workload.addresses[0]!,
						}),
					},
				}),
	});
	for (const note of notes) say(`note: ${note}`);
	say(
		`capture: ${isChanged ? 'applied' : 'unchanged'}, ${planned.rules.length} rules with ${backend}, plan ${planned.digest}`,
	);
	if (!isOnTrial) return 0;
	const isConfirmedHere = option === 'trial' || isByProbes;
	const undone = await awaitTrial(deps, signal, isConfirmedHere);
	if (undone) throw rolledBack(undone);
	say(
		isConfirmedHere
			? 'capture: confirmed, all that worked before works'
			: `capture: all that worked before works; undone in ${String(limit)} unless you say: onramp capture confirm`,
	);
	return 0;
}

function parseConfirm(option: string, text: string): number {
	const [, number, unit = 's'] = /^(\d{1,4})(ms|s|m)?$/.exec(text) ?? [];
	if (number === undefined || Number(number) === 0)
		throw new AgentError('cli.usage', `--${option}: "${text}" is not a duration`, {hint: 'write it as 60s or 2m'});
	return Number(number) * {ms: 1, s: 1000, m: 60_000}[unit as 'ms' | 's' | 'm'];
}

const confirm: Command = {
	usage: 'confirm',
	description: 'Keep the rules of "apply --confirm"',
	hasSettings: true,
	plain: {},
	run: async flags => {
		const {config} = await depsFrom(flags);
		if (await confirmPending(config)) {
			say('capture: confirmed');
			return 0;
		}
		const undone = await readJson<Rollback>(placesIn(config.stateDir).rollback);
		say(
			undone
				? `capture: too late, undone at ${undone.at}: ${undone.reason}`
				: 'capture: nothing waits for a confirmation',
		);
		return 1;
	},
};

const guardian: Command = {
	usage: 'guardian <directory> <previous>',
	description: 'Used by "apply --confirm": undoes the change unless it is confirmed',
	hasSettings: false,
	options: yargs =>
		yargs
			.positional('directory', {type: 'string', description: 'capture.state-dir'})
			.positional('previous', {type: 'string', description: 'digest of the rules to go back to, or none'}),
	run: async ({directory, previous}) => {
		const stateDir = String(directory);
		const deps = {run: runProgram, clock: systemClock};
		await guardChange({
			...deps,
			stateDir,
			previousDigest: String(previous),
			undo: earlier => undoCapture(deps, stateDir, earlier),
		});
		return 0;
	},
};

const check: Command = {
	usage: 'check',
	description: 'Once, in silence if all is well: repair or report what others have changed, as capture.on-drift says',
	hasSettings: true,
	plain: {},
	run: async (flags, signal) => {
		const {problems, isRepaired} = await checkCapture(await depsFrom(flags), signal);
		for (const problem of problems) say(`capture: not as planned: ${problem}`);
		if (isRepaired) say('capture: repaired');
		return problems.length === 0 || isRepaired ? 0 : 1;
	},
};

const watch: Command = {
	usage: 'watch',
	description: 'Stay and repair or report what others change, as capture.on-drift and capture.on-agent-down say',
	hasSettings: true,
	plain: {},
	run: async (flags, signal) => {
		const config = await readSettings(flags);
		const deps: CaptureDeps = {config: config.capture, run: runProgram, clock: systemClock};
		refuseIfDisabled(deps);
		const {createLogger} = await import('../log.ts');
		await watchCapture({...deps, log: createLogger(config.log).child({part: 'capture'})}, signal);
		return 0;
	},
};

const status: Command = {
	usage: 'status',
	description: 'Tell which rules are in force, what differs from the plan, and what waits for a confirmation',
	hasSettings: true,
	plain: {json: 'boolean'},
	options: yargs => yargs.option('json', {type: 'boolean', description: 'Print JSON'}),
	run: async ({json, ...flags}) => {
		const deps = await depsFrom(flags);
		const {backend, plan: planned, live, problems} = await verifyCapture(deps);
		const places = placesIn(deps.config.stateDir);
		const pending = await readJson<Pending>(places.pending);
		const undone = await readJson<Rollback>(places.rollback);
		const older = live ? findOlder(planned, proxyPortsOf(deps.config), await readSockets()) : [];
		const bypassed = await readJson<{readonly since: string}>(places.bypassed);
		if (json) {
			say(
				JSON.stringify(
					{backend, plan: planned.digest, live, problems, pending: pending?.id, undone, bypassed, older},
					undefined,
					'\t',
				),
			);
			return 0;
		}
		if (!live) say('capture: off, no rules of ours are in the kernel');
		else
			say(
				`capture: ${live.kind === 'block' ? 'blocking' : 'on'} with ${backend}, ${problems.length === 0 ? 'as planned' : 'not as planned'}`,
			);
		if (live) for (const problem of problems) say(`problem: ${problem}`);
		for (const text of describeOlder(older, deps.config.existingConnections)) say(text);
		if (bypassed) say(`bypassed since ${bypassed.since}: Envoy does not answer; capture comes back when it does`);
		if (pending) say('waits for: onramp capture confirm');
		if (undone) say(`undone at ${undone.at}: ${undone.reason}${undone.rule ? `\n  decided by ${undone.rule}` : ''}`);
		for (const {family, chain, comment, packets} of live?.packets ?? [])
			if (packets > 0) say(`${String(packets).padStart(9)}  ${family.padEnd(3)} ${chain.padEnd(17)} ${comment}`);
		return 0;
	},
};

const remove: Command = {
	usage: 'remove',
	description: 'Take away every rule of ours; safe to repeat',
	hasSettings: true,
	plain: {all: 'boolean'},
	options: yargs =>
		yargs.option('all', {type: 'boolean', description: 'Also the rules that capture.on-agent-down "block" leaves'}),
	run: async ({all, ...flags}) => {
		const kernel = new Kernel(runProgram).ask();
		const deps: CaptureDeps = {...(await depsFrom(flags)), kernel};
		// Of the unit that this is run for after its end.
		const result = process.env['SERVICE_RESULT'];
		const because = result === undefined || result === 'success' ? undefined : await failureOfUnit(deps.config, result);
		const removed = await removeCapture(deps, {isComplete: all === true, because});
		const {backends, isBlocking} = removed;
		say(
			isBlocking
				? 'capture: removed; traffic that ought to be captured is refused (onramp capture remove --all ends that)'
				: `capture: ${backends.length === 0 ? 'nothing to remove' : `removed (${backends.join(', ')})`}`,
		);
		for (const sentence of describeEnded(removed)) say(`capture: ${sentence}`);
		return 0;
	},
};

const verify: Command = {
	usage: 'verify',
	description: 'Compare the live rules with the plan and send a packet through; exit code 0 only if all is well',
	hasSettings: true,
	plain: {json: 'boolean'},
	options: yargs => yargs.option('json', {type: 'boolean', description: 'Print JSON'}),
	run: async ({json, ...flags}) => {
		const deps = await depsFrom(flags);
		const {backend, plan: planned, live, problems: differences} = await verifyCapture(deps);
		const through = live && differences.length === 0 ? await probeThrough(deps, planned) : [];
		const problems = [...differences, ...through.filter(({isGood}) => !isGood).map(({text}) => text)];
		if (json) say(JSON.stringify({backend, plan: planned.digest, problems, packets: through}, undefined, '\t'));
		else if (problems.length === 0) {
			say(`capture: as planned, ${planned.rules.length} rules with ${backend}, plan ${planned.digest}`);
			for (const {text} of through) say(`  ${text}`);
		} else for (const problem of problems) say(`problem: ${problem}`);
		return problems.length === 0 ? 0 : 1;
	},
};

const step: Command = {
	usage: 'step',
	description: 'Used by an agent with capture.by-agent: does what standard input says, as JSON',
	hasSettings: false,
	plain: {},
	run: async (_flags, signal) => {
		const chunks: Buffer[] = [];
		for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
		const reply = await performStep(JSON.parse(Buffer.concat(chunks).toString()) as StepRequest, signal);
		say(JSON.stringify(reply));
		return 0;
	},
};

export const captureCommand: CommandGroup = {
	usage: 'capture',
	description: 'Lead the traffic of this machine through Envoy, or stop doing so',
	commands: [plan, apply, confirm, remove, verify, status, check, watch, guardian, step],
};
