import {execFile} from 'node:child_process';
import {readFile} from 'node:fs/promises';

/**
 * While Istio's rules are in and its Envoy is not, they lead all outbound connections to a port where nobody, or our own
 * Envoy, listens: our user's must go past them, or it could neither reach the control plane nor anything else. One rule at the
 * head of each OUTPUT that Istio has changed does it, until ours are in and Istio's are gone.
 */

const comment = 'onramp: taking over from istio';
const programs = ['iptables-nft', 'ip6tables-nft', 'iptables-legacy', 'ip6tables-legacy'] as const;
const ruleFor = (user: string): readonly string[] => [
	...['OUTPUT', '-m', 'owner', '--uid-owner', user],
	...['-m', 'comment', '--comment', comment, '-j', 'RETURN'],
];

/** @throws Error when the kernel refuses it */
export async function exempt(user: string): Promise<void> {
	for (const program of programs) {
		const rules = await list(program);
		if (!/^-A (?:OUTPUT|ISTIO_\w+) .*ISTIO_/m.test(rules) || rules.includes(comment)) continue;
		const [chain, ...words] = ruleFor(user);
		const {code, stderr} = await run(program, ['-w', '-t', 'nat', '-I', chain!, '1', ...words]);
		if (code !== 0) throw new Error(`${program}: ${stderr.trim()}`);
	}
}

/** May be repeated. */
export async function endExemption(user: string): Promise<void> {
	for (const program of programs) {
		if ((await list(program)).includes(comment)) await run(program, ['-w', '-t', 'nat', '-D', ...ruleFor(user)]);
	}
}

/** '' where there are none, or no such program. */
async function list(program: string): Promise<string> {
	// To be asked is enough for iptables-legacy to make its tables.
	if (program.endsWith('-legacy') && !(await hasLegacyNat(program))) return '';
	return (await run(program, ['-w', '-t', 'nat', '-S'])).stdout;
}

const hasLegacyNat = (program: string): Promise<boolean> =>
	readFile(`/proc/net/${program.slice(0, -'tables-legacy'.length)}_tables_names`, 'latin1').then(
		names => /^nat$/m.test(names),
		() => false,
	);

function run(file: string, words: readonly string[]): Promise<{code: number; stdout: string; stderr: string}> {
	return new Promise(resolve => {
		const child = execFile(file, words, {timeout: 30_000}, (_, stdout, stderr) => {
			resolve({code: child.exitCode ?? 1, stdout, stderr});
		});
	});
}
