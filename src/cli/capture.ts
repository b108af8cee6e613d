import {
	applyCapture,
	type CaptureDeps,
	prepareCapture,
	removeCapture,
	renderAs,
	renderText,
	runProgram,
	verifyCapture,
} from '../capture/index.ts';
import {AgentError} from '../errors.ts';
import {systemClock} from '../lifecycle/index.ts';
import type {Command, CommandGroup, Flags} from './index.ts';
import {loadFrom} from './load.ts';

const say = (text: string): boolean => process.stdout.write(`${text}\n`);

async function depsFrom(flags: Flags): Promise<CaptureDeps> {
	const {config} = await loadFrom(flags);
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

const plan: Command = {
	usage: 'plan',
	description: 'Show the rules that apply would load, each with its reason; change nothing',
	hasSettings: true,
	options: yargs =>
		yargs.option('format', {
			type: 'string',
			requiresArg: true,
			choices: ['text', 'nft', 'iptables', 'json'],
			default: 'text',
			description: 'text, json, or the very text for nft or iptables-restore',
		}),
	run: async ({format, ...flags}) => {
		const deps = await depsFrom(flags);
		const {plan: planned, backend, host} = await prepareCapture(deps);
		if (format === 'json') say(JSON.stringify({backend: backend.name, facts: host, ...planned}, undefined, '\t'));
		else if (format === 'text') process.stdout.write(renderText(planned));
		else process.stdout.write(await renderAs(format === 'nft' ? 'nft' : 'iptables-nft', planned, runProgram));
		return 0;
	},
};

const apply: Command = {
	usage: 'apply',
	description: 'Lead the traffic of this machine through Envoy; safe to repeat',
	hasSettings: true,
	options: yargs => yargs.option('force', {type: 'boolean', description: 'Do not look whether Envoy and DNS answer'}),
	run: async ({force, ...flags}, signal) => {
		const deps = await depsFrom(flags);
		refuseIfDisabled(deps);
		const {backend, plan: planned, isChanged, notes} = await applyCapture(deps, signal, {isForced: force === true});
		for (const note of notes) say(`note: ${note}`);
		say(
			`capture: ${isChanged ? 'applied' : 'unchanged'}, ${planned.rules.length} rules with ${backend}, plan ${planned.digest}`,
		);
		return 0;
	},
};

const remove: Command = {
	usage: 'remove',
	description: 'Take away every rule of ours; safe to repeat',
	hasSettings: true,
	options: yargs =>
		yargs.option('all', {type: 'boolean', description: 'Also the rules that capture.on-agent-down "block" leaves'}),
	run: async ({all, ...flags}) => {
		const {backends, isBlocking} = await removeCapture(await depsFrom(flags), {isComplete: all === true});
		say(
			isBlocking
				? 'capture: removed; traffic that ought to be captured is refused (onramp capture remove --all ends that)'
				: `capture: ${backends.length === 0 ? 'nothing to remove' : `removed (${backends.join(', ')})`}`,
		);
		return 0;
	},
};

const verify: Command = {
	usage: 'verify',
	description: 'Compare the live rules with the plan; exit code 0 only if they agree',
	hasSettings: true,
	options: yargs => yargs.option('json', {type: 'boolean', description: 'Print JSON'}),
	run: async ({json, ...flags}) => {
		const {backend, plan: planned, problems} = await verifyCapture(await depsFrom(flags));
		if (json) say(JSON.stringify({backend, plan: planned.digest, problems}, undefined, '\t'));
		else if (problems.length === 0)
			say(`capture: as planned, ${planned.rules.length} rules with ${backend}, plan ${planned.digest}`);
		else for (const problem of problems) say(`problem: ${problem}`);
		return problems.length === 0 ? 0 : 1;
	},
};

export const captureCommand: CommandGroup = {
	usage: 'capture',
	description: 'Lead the traffic of this machine through Envoy, or stop doing so',
	commands: [plan, apply, remove, verify],
};
