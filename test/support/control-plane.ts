// The sandbox as a process of its own in another network namespace; commands go in as lines.
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {until} from './mesh.ts';
import {address, type Namespace} from './netns.ts';

export type ControlPlane = (...command: readonly unknown[]) => Promise<unknown>;

/** Starts it at the far side's address; what it returns calls a method of the sandbox, `control('addService', {…})`. */
export async function startControlPlane(far: Namespace): Promise<ControlPlane> {
	const script = join(import.meta.dirname, '..', '..', 'src', 'sandbox', 'main.ts');
	const options = ['--host', address.far.ip, '--port', '15012', '--app-port', '0', '--strict'];
	const child = far.spawn([process.execPath, script, ...options]);
	const events: {readonly event: string; readonly result?: unknown; readonly error?: string}[] = [];
	createInterface({input: child.stdout!}).on('line', line => events.push(JSON.parse(line)));
	await until('the control plane', () => events.some(({event}) => event === 'started'));
	return async (...command) => {
		const before = events.length;
		child.stdin!.write(`${JSON.stringify(command)}\n`);
		const answer = await until(`an answer to ${String(command[0])}`, () =>
			events.slice(before).find(({event}) => event === 'done' || event === 'failed'),
		);
		if (answer.event === 'failed') throw new Error(answer.error);
		return answer.result;
	};
}

/** Two services that can only be called by name of an address that nobody has, `vips`. */
export const vips = {a: '240.240.0.11', b: '240.240.0.12'} as const;
export const idOf = (group: string): string => `spiffe://cluster.local/ns/mesh/sa/${group}-sa`;

export async function addGroups(control: ControlPlane): Promise<void> {
	for (const group of ['a', 'b'] as const) {
		const names = {name: group, namespace: 'mesh', serviceAccount: `${group}-sa`, labels: {app: group}};
		await control('addWorkloadGroup', names);
		await control('addService', {
			host: `${group}.mesh.svc.cluster.local`,
			namespace: 'mesh',
			port: 80,
			targetPort: 8080,
			protocol: 'http',
			address: vips[group],
			selector: {app: group},
		});
	}
}
