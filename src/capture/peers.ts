import {AgentError} from '../errors.ts';
import {findTool} from './find-tool.ts';
import type {LiveTables} from './iptables-save.ts';
import {type Kernel, programOf, type Xtables} from './kernel.ts';
import {mustRun, type Run} from './programs.ts';
import {type Family, families} from './rules.ts';

/** What Istio's own tool names its chains and tables. Two sets of rules would lead each connection twice. */
const peerPrefix = 'ISTIO_';
const peerTable = /^istio-proxy-/;

const ways: readonly Xtables[] = ['iptables-nft', 'iptables-legacy'];

interface Peer {
	readonly place: string;
	remove(): Promise<unknown>;
}

/** @throws AgentError `capture.foreign_rules` when rules of Istio's tool are there and are not to be taken over */
export async function refusePeers(run: Run, kernel: Kernel, isTakeOver: boolean): Promise<void> {
	if (isTakeOver) return;
	const peers = await findPeers(run, kernel);
	if (peers.length === 0) return;
	throw new AgentError(
		'capture.foreign_rules',
		`apply capture: rules of Istio's own tool are there (${peers.map(({place}) => place).join(', ')})`,
		{
			hint: 'nothing was changed; stop that agent and remove them first (pilot-agent istio-iptables --cleanup-only), or give --take-over',
		},
	);
}

export async function removePeers(run: Run, kernel: Kernel): Promise<void> {
	for (const peer of await findPeers(run, kernel)) await peer.remove();
}

async function findPeers(run: Run, kernel: Kernel): Promise<readonly Peer[]> {
	const chains = ways.flatMap(way => families.map(family => findChains(run, kernel, way, family)));
	return (await Promise.all([...chains, findTables(run, kernel)])).flat();
}

/** Where these tables may not be seen, they are somebody else's to change. */
const unseen = (error: unknown): undefined => {
	if (error instanceof AgentError) return undefined;
	throw error;
};

async function findChains(run: Run, kernel: Kernel, way: Xtables, family: Family): Promise<readonly Peer[]> {
	const program = programOf(way, family, 'restore');
	if (findTool(program) === undefined) return [];
	const saved = await kernel.tablesWith(peerPrefix, way, family).catch(unseen);
	if (!saved) return [];
	return saved.names.flatMap(table => {
		const chains = saved.chainsOf(table).filter(name => name.startsWith(peerPrefix));
		if (chains.length === 0) return [];
		const text = [
			`*${table}`,
			...saved.jumpsOf(table, peerPrefix).map(({line}) => line.replace(/^-A /, '-D ')),
			...findMarking(saved, table).map(line => line.replace(/^-A /, '-D ')),
			...chains.map(name => `-F ${name}`),
			...chains.map(name => `-X ${name}`),
			'COMMIT',
			'',
		].join('\n');
		const remove = () => mustRun(run, program, ['--noflush', '-w', '30'], text);
		return [{place: `${program.replace('-restore', '')}, table ${table}`, remove}];
	});
}

/** With TPROXY some rules stand in the kernel's own chains; the mark that they share with ISTIO_DIVERT tells whose they are. */
function findMarking(saved: LiveTables, table: string): readonly string[] {
	if (table !== 'mangle') return [];
	const rules = saved.rulesOf(table);
	const [, mark] =
		rules.map(line => /^-A ISTIO_DIVERT -j MARK --set-xmark (0x[0-9a-f]+)/.exec(line)).find(Boolean) ?? [];
	if (mark === undefined) return [];
	const marks = [mark, `0x${(Number(mark) + 1).toString(16)}`];
	return rules.filter(
		line =>
			/^-A (?:PREROUTING|OUTPUT) .*-p tcp /.test(line) &&
			marks.includes(markOf(line) ?? '') &&
			/ -j (?:(?:CONN)?MARK|RETURN)\b/.test(line),
	);
}

/** That a rule asks for or sets. */
const markOf = (line: string): string | undefined => /--(?:mark|set-xmark) (0x[0-9a-f]+)/.exec(line)?.[1];

async function findTables(run: Run, kernel: Kernel): Promise<readonly Peer[]> {
	const objects = await kernel.rules();
	if (!objects || objects instanceof AgentError) return [];
	return objects.flatMap(({table}) =>
		table && peerTable.test(String(table['name']))
			? [
					{
						place: `nft, table ${String(table['family'])} ${String(table['name'])}`,
						remove: () => mustRun(run, 'nft', ['delete', 'table', String(table['family']), String(table['name'])]),
					},
				]
			: [],
	);
}
