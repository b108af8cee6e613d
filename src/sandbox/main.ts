import {createInterface} from 'node:readline';
import {parseArgs} from 'node:util';
import {shortType} from '../proto/types.ts';
import {type Sandbox, startSandbox} from './index.ts';

/**
 * Runs the sandbox by itself, with one WorkloadGroup and a service on it, and prints what happens as JSON lines:
 *   node src/sandbox/main.ts --port 15012 --bundle-dir bundle --group vm
 */
const usage = {
	host: {type: 'string', default: '127.0.0.1'},
	port: {type: 'string', default: '15012'},
	group: {type: 'string', default: 'vm'},
	namespace: {type: 'string', default: 'default'},
	'service-account': {type: 'string', default: 'vm'},
	/** Port of the application behind the group's service; 0 = no service. */
	'app-port': {type: 'string', default: '8080'},
	/** Where to write a bundle. */
	'bundle-dir': {type: 'string'},
	/** Address in the bundle's `hosts`. */
	address: {type: 'string', default: '127.0.0.1'},
	/** Synthetic services. */
	services: {type: 'string', default: '0'},
	'certificate-seconds': {type: 'string'},
	'grace-seconds': {type: 'string', default: '10'},
	strict: {type: 'boolean', default: false},
	/** Leave out what stock Envoy does not know. */
	'no-istio-extensions': {type: 'boolean', default: false},
} as const;

const print = (event: string, fields: object): void => console.log(JSON.stringify({event, at: new Date(), ...fields}));

async function main(): Promise<void> {
	const {values} = parseArgs({options: usage});
	const {group: name, namespace} = values;
	const sandbox = await startSandbox({
		host: values.host,
		port: Number(values.port),
		istioExtensions: !values['no-istio-extensions'],
		mtls: values.strict ? 'strict' : 'permissive',
		gracePeriodMs: Number(values['grace-seconds']) * 1000,
		certificateLifetimeMs: values['certificate-seconds'] ? Number(values['certificate-seconds']) * 1000 : undefined,
	});
	follow(sandbox);
	const appPort = Number(values['app-port']);
	const serviceAccount = values['service-account'];
	sandbox.addWorkloadGroup({
		name,
		namespace,
		serviceAccount,
		labels: {app: name},
		ports: appPort ? {http: appPort} : {},
	});
	if (appPort) {
		const host = `${name}.${namespace}.svc.cluster.local`;
		sandbox.addService({host, namespace, port: 80, targetPort: appPort, protocol: 'http', selector: {app: name}});
	}
	sandbox.addServices(Number(values.services));
	const bundle = values['bundle-dir']
		? await sandbox.writeBundle(values['bundle-dir'], {group: name, namespace, ingressAddress: values.address})
		: undefined;
	print('started', {address: sandbox.address, bundle});
	createInterface({input: process.stdin}).on('line', line => void obey(sandbox, line));
	const stop = () => void sandbox.stop().then(() => process.exit(0));
	process.once('SIGINT', stop);
	process.once('SIGTERM', stop);
}

/** One command a line on stdin: `["addServices", 1000]`, `["faults.rotateRoot"]`, `["workloadEntries"]`. */
async function obey(sandbox: Sandbox, line: string): Promise<void> {
	try {
		const [name, ...parameters] = JSON.parse(line) as [string, ...unknown[]];
		const [owner, method] = name.startsWith('faults.') ? [sandbox.faults, name.slice(7)] : [sandbox, name];
		const call: unknown = (owner as unknown as Record<string, unknown>)[method];
		if (typeof call !== 'function') throw new TypeError(`no command "${name}"`);
		print('done', {name, result: await call(...parameters)});
	} catch (error) {
		print('failed', {line, error: String(error)});
	}
}

function follow(sandbox: Sandbox): void {
	sandbox.streams.on(({state, connection: {id, identity, protocol}}) =>
		print(`stream ${state}`, {id, identity, protocol}),
	);
	sandbox.pushes.on(({connection, typeUrl, resources, removed, bytes}) =>
		print('push', {connection, type: shortType(typeUrl), resources, removed, bytes}),
	);
	sandbox.acks.on(({connection, typeUrl, error}) =>
		print(error ? 'nack' : 'ack', {connection, type: shortType(typeUrl), ...(error ? {error} : {})}),
	);
}

await main();
