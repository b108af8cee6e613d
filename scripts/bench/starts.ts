import {startUntilReady} from './agent.ts';
import {quantile, sleep} from './figures.ts';
import {type Bench, type Contender, contenders, withAgent, withControlPlane} from './setup.ts';

interface Starts {
	readonly join: number[];
	readonly restart: number[];
	readonly adopt: number[];
}

/** What an agent still does after it is ready, such as a trial renewal and writing to disk. */
const settleMs = 500;

/** From nothing, from what is on disk, and after a crash; turns alternate, so that the noise of the machine meets all. */
export async function measureStarts(bench: Bench): Promise<void> {
	const hasRestart = bench.wants('restart');
	const hasAdopt = bench.wants('adopt');
	if (!bench.wants('join') && !hasRestart && !hasAdopt) return;
	const turns = contenders(bench, 'peer-ecdsa');
	const results = new Map<Contender, Starts>(turns.map(who => [who, {join: [], restart: [], adopt: []}]));
	await withControlPlane(bench, async plane => {
		for (let round = 0; round < (bench.isQuick ? 3 : 9); round++) {
			for (const who of turns) {
				await withAgent(bench, plane, who, async agent => {
					const {join, restart, adopt} = results.get(who)!;
					join.push(await startUntilReady(agent));
					if (!hasRestart && !hasAdopt) return;
					await sleep(settleMs);
					if (hasRestart) {
						await agent.stop();
						restart.push(await startUntilReady(agent));
						await sleep(settleMs);
					}
					if (hasAdopt && who !== 'peer-ecdsa') {
						await agent.crash();
						adopt.push(await startUntilReady(agent));
					}
					bench.say(
						`start round ${round + 1}, ${agent.label}: ${[join, restart, adopt].map(times => times.at(-1)?.toFixed(0) ?? '-').join(' / ')} ms`,
					);
				});
			}
		}
	});
	report(bench, results);
}

function report(bench: Bench, results: ReadonlyMap<Contender, Starts>): void {
	const p90 = (values: readonly number[]) => quantile(values, 0.9);
	const ecdsa = results.get('peer-ecdsa');
	const row = (id: keyof Starts, title: string, peer: readonly number[], suffix = '', note?: string) => {
		const {onramp} = {onramp: results.get('onramp')![id]};
		if (onramp.length === 0 || !bench.wants(id)) return;
		const keys = suffix ? ', ECDSA P-256 on both' : '';
		bench.report({id: `${id}${suffix}`, title: `${title} → ready${keys}, median`, unit: 'ms', onramp, peer, note});
		bench.report({
			id: `${id}${suffix}-p90`,
			title: `${title} → ready${keys}, p90`,
			unit: 'ms',
			onramp,
			peer,
			reduce: p90,
			note,
		});
	};
	row('join', 'fresh join', results.get('peer')?.join ?? []);
	if (ecdsa) row('join', 'fresh join', ecdsa.join, '-ecdsa');
	row('restart', 'restart with state', results.get('peer')?.restart ?? []);
	if (ecdsa) row('restart', 'restart with state', ecdsa.restart, '-ecdsa');
	row('adopt', 'agent killed', results.get('peer')?.adopt ?? [], '', 'Envoy lives on; the peer starts a new one');
}
