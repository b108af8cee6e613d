import {AgentError, reasonOf} from '../errors.ts';
import type {Backend, BackendName} from './backend.ts';
import type {HostFacts} from './context.ts';
import {findTool} from './find-tool.ts';
import type {lookAtHost} from './host.ts';
import {iptablesBackend} from './iptables.ts';
import type {Kernel} from './kernel.ts';
import {nftBackend} from './nft.ts';
import type {Run} from './programs.ts';
import type {Plan} from './rules.ts';

/** The tools of each way; all must be there. */
const tools: Readonly<Record<BackendName, readonly string[]>> = {
	nft: ['nft'],
	'iptables-nft': ['iptables-nft-save', 'iptables-nft-restore'],
	'iptables-legacy': ['iptables-legacy-save', 'iptables-legacy-restore'],
};

const names: readonly BackendName[] = ['nft', 'iptables-nft', 'iptables-legacy'];

const make = (name: BackendName, run: Run): Backend => (name === 'nft' ? nftBackend(run) : iptablesBackend(name, run));

/** Another way may do better; anything else is wrong whatever the way. */
const isOfBackend: ReadonlySet<string> = new Set([
	'capture.unsupported',
	'capture.tool_failed',
	'capture.tool_missing',
]);

/** Every way this machine has the tools for, in order of preference. */
export const findBackends = (run: Run): readonly Backend[] =>
	names.filter(name => tools[name].every(tool => findTool(tool) !== undefined)).map(name => make(name, run));

type Host = Awaited<ReturnType<typeof lookAtHost>>;

/**
 * The first way with the plan that nearly every kernel takes, without asking this one: nft changes all or nothing, so
 * loading is as good as asking, and an answer would cost as much again. undefined: only asking tells.
 */
export function guessBackend(
	wanted: BackendName | 'auto',
	host: Host,
	make: (host: HostFacts) => Plan,
	run: Run,
): Selected | undefined {
	const backend =
		wanted === 'auto' || wanted === 'nft' ? findBackends(run).find(({name}) => name === 'nft') : undefined;
	if (!backend) return undefined;
	const facts = {...host, hasConntrackTimeouts: true};
	return {backend, plan: make(facts), host: facts};
}

export interface Selected {
	readonly backend: Backend;
	readonly plan: Plan;
	readonly host: HostFacts;
}

/**
 * The first way that would take the plan, as the kernel itself says; nothing is changed to find out.
 * @param make - what can be planned depends on what the way can do
 * @throws AgentError `capture.tool_missing`, `capture.unsupported` with the reason of each, `capture.permission`
 */
export async function selectBackend(
	wanted: BackendName | 'auto',
	host: Host,
	make: (host: HostFacts) => Plan,
	run: Run,
	kernel: Kernel,
): Promise<Selected> {
	const found = findBackends(run);
	const candidates = wanted === 'auto' ? found : found.filter(({name}) => name === wanted);
	if (candidates.length === 0)
		throw new AgentError(
			'capture.tool_missing',
			wanted === 'auto'
				? 'capture: this machine has neither nft nor iptables'
				: `capture: this machine does not have ${wanted}`,
			{hint: 'install the package nftables (or iptables); nothing was changed'},
		);
	const reasons: string[] = [];
	for (const backend of candidates) {
		try {
			const facts = {...host, ...(await backend.abilities(host.ipv6))};
			const plan = make(facts);
			await backend.check(plan, kernel);
			return {backend, plan, host: facts};
		} catch (error) {
			if (!(error instanceof AgentError) || !isOfBackend.has(error.code)) throw error;
			reasons.push(`${backend.name}: ${reasonOf(error)}`);
		}
	}
	throw new AgentError('capture.unsupported', `capture: no way to load the rules works here: ${reasons.join('; ')}`, {
		hint: 'nothing was changed; docs/capture.md lists what a kernel must have',
	});
}
