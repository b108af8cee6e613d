import {execFileSync} from 'node:child_process';
import {findProgram} from '../lifecycle/find-program.ts';

/**
 * Path of a tool, as {@link findProgram}. Those of iptables are asked for by the names that tell which tables they are for
 * (`ip6tables-nft-save`); where no tool has such a name, `iptables` itself says which.
 */
export function findTool(name: string): string | undefined {
	const path = findProgram(name);
	const [, tool, kind, verb = ''] = /^(ip6?tables)-(nft|legacy)(-save|-restore)?$/.exec(name) ?? [];
	if (path !== undefined || tool === undefined) return path;
	kindOfPlain ??= {kind: askKind()};
	return kindOfPlain.kind === kind ? findProgram(`${tool}${verb}`) : undefined;
}

let kindOfPlain: {readonly kind: 'nft' | 'legacy' | undefined} | undefined;

/** undefined where it is known by another name, or not there. */
function askKind(): 'nft' | 'legacy' | undefined {
	const path = findProgram('iptables');
	if (path === undefined || findProgram('iptables-nft-save') || findProgram('iptables-legacy-save')) return undefined;
	try {
		// Before 1.8 there was one kind, and nothing in brackets.
		const said = execFileSync(path, ['--version'], {encoding: 'utf8', timeout: 10_000, stdio: 'pipe'});
		return said.includes('(nf_tables)') ? 'nft' : 'legacy';
	} catch {
		return undefined;
	}
}
