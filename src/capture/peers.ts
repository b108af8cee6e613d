import {AgentError} from '../errors.ts';
import {hasLegacyTables, parseSave} from './iptables-save.ts';
import {findProgram, mustRun, type Run} from './programs.ts';

/** What Istio's own tool names its chains and tables. Two sets of rules would lead each connection twice. */
const peerPrefix = 'ISTIO_';
const peerTable = /^istio-proxy-/;

const programs = ['iptables-nft', 'ip6tables-nft', 'iptables-legacy', 'ip6tables-legacy'] as const;

interface Peer {
	readonly place: string;
	remove(): Promise<unknown>;
}

/** @throws AgentError `capture.foreign_rules` when rules of Istio's tool are there and are not to be taken over */
export async function refusePeers(run: Run, isTakeOver: boolean): Promise<void> {
	if (isTakeOver) return;
	const peers = await findPeers(run);
	if (peers.length === 0) return;
	throw new AgentError(
		'capture.foreign_rules',
		`apply capture: rules of Istio's own tool are there (${peers.map(({place}) => place).join(', ')})`,
		{
			hint: 'nothing was changed; stop that agent and remove them first (pilot-agent istio-iptables --cleanup-only), or give --take-over',
		},
	);
}

export async function removePeers(run: Run): Promise<void> {
	for (const peer of await findPeers(run)) await peer.remove();
}

async function findPeers(run: Run): Promise<readonly Peer[]> {
	return (await Promise.all([...programs.map(program => findChains(run, program)), findTables(run)])).flat();
}

async function findChains(run: Run, program: (typeof programs)[number]): Promise<readonly Peer[]> {
	if (program.endsWith('legacy') && !(await hasLegacyTables(program.startsWith('ip6') ? 'ip6' : 'ip'))) return [];
	if ((await findProgram(`${program}-save`)) === undefined || (await findProgram(`${program}-restore`)) === undefined)
		return [];
	const {code, stdout} = await run(`${program}-save`, []);
	if (code !== 0) return [];
	const saved = parseSave(stdout);
	return saved.names.flatMap(table => {
		const chains = saved.chainsOf(table).filter(name => name.startsWith(peerPrefix));
		if (chains.length === 0) return [];
		const text = [
			`*${table}`,
			...saved.jumpsOf(table, peerPrefix).map(({line}) => line.replace(/^-A /, '-D ')),
			...chains.map(name => `-F ${name}`),
			...chains.map(name => `-X ${name}`),
			'COMMIT',
			'',
		].join('\n');
		const remove = () => mustRun(run, `${program}-restore`, ['--noflush', '-w', '30'], text);
		return [{place: `${program}, table ${table}`, remove}];
	});
}

async function findTables(run: Run): Promise<readonly Peer[]> {
	if ((await findProgram('nft')) === undefined) return [];
	const {code, stdout} = await run('nft', ['-j', 'list', 'tables']);
	if (code !== 0) return [];
	const objects = (JSON.parse(stdout) as {nftables: readonly {table?: {family: string; name: string}}[]}).nftables;
	return objects.flatMap(({table}) =>
		table && peerTable.test(table.name)
			? [
					{
						place: `nft, table ${table.family} ${table.name}`,
						remove: () => mustRun(run, 'nft', ['delete', 'table', table.family, table.name]),
					},
				]
			: [],
	);
}
