import test from 'ava';
import {iptablesBackend} from '../../../src/capture/iptables.ts';
import {Kernel} from '../../../src/capture/kernel.ts';
import {nftBackend} from '../../../src/capture/nft.ts';
import {planCapture} from '../../../src/capture/plan.ts';
import type {Run} from '../../../src/capture/programs.ts';
import {host, settings} from './settings.ts';

/** A machine whose kernel refuses some of what it is handed, and says so. */
const machine =
	(refuses: (call: string) => string | undefined): Run =>
	async (program, args, input = '') => {
		const refusal = refuses(`${[program, ...args].join(' ')}\n${input}`);
		if (refusal !== undefined) return {code: 1, stdout: '', stderr: refusal};
		return {code: 0, stdout: program === 'nft' ? '{"nftables": []}' : '', stderr: ''};
	};

const ways = {
	nft: nftBackend,
	'iptables-nft': (run: Run) => iptablesBackend('iptables-nft', run),
	'iptables-legacy': (run: Run) => iptablesBackend('iptables-legacy', run),
} as const;

/** Of the question whether IPv6 can be redirected. */
const asksForIpv6 = (call: string): boolean =>
	/^nft -c -f -\ntable ip6 .*redirect/s.test(call) || /^ip6tables-\S+ -t nat /.test(call);

for (const [name, make] of Object.entries(ways)) {
	test(`${name} › a kernel that cannot redirect IPv6 is told from one without IPv6`, async t => {
		const without = make(machine(call => (asksForIpv6(call) ? 'No such file or directory' : undefined)));
		t.is((await without.abilities('on')).ipv6, 'no-nat');
		t.is((await without.abilities('off')).ipv6, 'off');
		t.is((await make(machine(() => undefined)).abilities('on')).ipv6, 'on');
	});

	test(`${name} › a kernel that lacks a feature is an error of its own, and not one of rights`, async t => {
		const plan = planCapture(settings(), {...host, hasConntrackTimeouts: name === 'nft'});
		const check = async (said: string) => {
			const run = machine(call => (/ (?:-c -f -|--test)\n/.test(call) ? said : undefined));
			const backend = make(run);
			return t.throwsAsync(backend.check(plan, new Kernel(run)));
		};
		t.like(await check('Could not process rule: No such file or directory'), {code: 'capture.unsupported'});
		t.like(await check('Operation not permitted (you must be root)'), {code: 'capture.permission'});
	});
}

test('plan › where IPv6 cannot be redirected, outgoing connections over it are refused, or go past Envoy as declared', t => {
	const without = {...host, ipv6: 'no-nat'} as const;
	const rulesOf = (ipv6: 'capture' | 'ignore') => {
		const {rules, notes} = planCapture(settings({ipv6}), without);
		return {kinds: rules.flatMap(({family, verdict}) => (family === 'ip6' ? [verdict.kind] : [])), notes: notes.join()};
	};
	const refused = rulesOf('capture');
	t.is(refused.kinds.at(-1), 'reject');
	t.false(refused.kinds.includes('redirect'));
	t.regex(refused.notes, /connections over IPv6 are refused/);
	t.deepEqual(rulesOf('ignore').kinds, []);
	t.regex(rulesOf('ignore').notes, /it goes past Envoy/);
});
