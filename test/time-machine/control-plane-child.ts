// The sandbox as a process of its own, so that its clocks can be moved. Does what it is told over the IPC channel.
import {startSandbox} from '../../src/sandbox/index.ts';
import type {Order, Reply, Sight, Start} from './control-plane.ts';

const {options, groups, services} = JSON.parse(process.argv[2]!) as Start;
const sandbox = await startSandbox(options);
for (const group of groups) sandbox.addWorkloadGroup(group);
for (const service of services) sandbox.addService(service);

function look(): Sight {
	return {
		connected: sandbox.connections().map(({node}) => node.name),
		registered: sandbox
			.workloadEntries()
			.filter(({annotations}) => annotations['istio.io/disconnectedAt'] === undefined)
			.map(({spec}) => spec.address),
		refusals: sandbox.acks.all.flatMap(({error}) => error?.message ?? []),
		counts: {...sandbox.counts},
	};
}

async function obey({name, input}: Order): Promise<unknown> {
	if (name === 'look') return look();
	const [owner, method] = name.startsWith('faults.') ? [sandbox.faults, name.slice(7)] : [sandbox, name];
	const call = (owner as unknown as Record<string, (...input: readonly unknown[]) => unknown>)[method]!;
	return call(...input);
}

process.on('message', async (order: Order) => {
	const reply: Reply = await obey(order).then(
		result => ({id: order.id, result}),
		error => ({id: order.id, error: String(error)}),
	);
	process.send!(reply);
});
// Its starter has gone.
process.once('disconnect', () => process.exit());
process.send!({id: 0, result: sandbox.port} satisfies Reply);
