import {generateKeyPairSync, sign} from 'node:crypto';
import * as grpc from '@grpc/grpc-js';
import {FieldReader, FieldWriter} from '../../../src/proto/wire.ts';
import {bitString, context, encode, integer, oid, sequence, tag, toPem} from '../../../src/sandbox/der.ts';
import {loadEnvoyTypes, type Message} from '../../../src/sandbox/envoy-types.ts';

/** A plain gRPC client for the sandbox (or a real istiod): knows the wire, decides nothing. */
export interface Identity {
	readonly certPem?: string;
	readonly keyPem?: string;
	readonly token?: string;
	readonly clusterId?: string;
}

export interface Target extends Identity {
	readonly address: string;
	readonly rootPem: string;
}

export interface AdsStream {
	send(request: Message): void;
	/** The next response; rejects with the gRPC error when the stream ends first. */
	next(): Promise<Message>;
	/** How the stream ended; never rejects. */
	readonly ended: Promise<grpc.StatusObject>;
	close(): void;
}

const bytes = (value: Buffer): Buffer => value;
const discovery = 'envoy.service.discovery.v3';

export function connect({address, rootPem, certPem, keyPem}: Target): grpc.Client {
	const credentials = grpc.credentials.createSsl(
		Buffer.from(rootPem),
		keyPem ? Buffer.from(keyPem) : null,
		certPem ? Buffer.from(certPem) : null,
	);
	return new grpc.Client(address, credentials, {
		'grpc.ssl_target_name_override': 'istiod.istio-system.svc',
		'grpc.max_receive_message_length': -1,
		'grpc.enable_retries': 0,
	});
}

export function headers({token, clusterId}: Identity): grpc.Metadata {
	const metadata = new grpc.Metadata();
	if (token !== undefined) metadata.set('authorization', `Bearer ${token}`);
	metadata.set('clusterid', clusterId ?? 'Kubernetes');
	return metadata;
}

/** @returns the answer's chain, or rejects with the ServiceError */
export async function requestCertificate(target: Target, csrPem: string, lifetimeSeconds = 86_400): Promise<string[]> {
	const client = connect(target);
	const body = new FieldWriter().string(1, csrPem).uint(3, lifetimeSeconds).finish();
	try {
		const answer = await new Promise<Buffer>((resolve, reject) => {
			client.makeUnaryRequest(
				'/istio.v1.auth.IstioCertificateService/CreateCertificate',
				bytes,
				bytes,
				body,
				headers(target),
				{deadline: Date.now() + 30_000},
				(error, value) => (error ? reject(error) : resolve(value!)),
			);
		});
		const chain: string[] = [];
		for (const reader = new FieldReader(answer); reader.next(); ) chain.push(reader.string());
		return chain;
	} finally {
		client.close();
	}
}

export function openAds(target: Target, kind: 'delta' | 'sotw'): AdsStream {
	const client = connect(target);
	const [method, request, response] =
		kind === 'delta'
			? ['DeltaAggregatedResources', 'DeltaDiscoveryRequest', 'DeltaDiscoveryResponse']
			: ['StreamAggregatedResources', 'DiscoveryRequest', 'DiscoveryResponse'];
	const call = client.makeBidiStreamRequest(
		`/envoy.service.discovery.v3.AggregatedDiscoveryService/${method}`,
		bytes,
		bytes,
		headers(target),
	);
	const types = loadEnvoyTypes();
	const waiting: Message[] = [];
	let failed: Error | undefined;
	let wake = () => {};
	call.on('data', (data: Buffer) => {
		waiting.push(types.decode(`${discovery}.${response}`, data));
		wake();
	});
	call.on('error', error => {
		failed = error;
		wake();
	});
	const ended = new Promise<grpc.StatusObject>(resolve => {
		call.on('status', status => {
			failed ??= Object.assign(new Error(status.details || 'stream ended'), status);
			resolve(status);
			wake();
		});
	});
	return {
		send: message => call.write(types.encode(`${discovery}.${request}`, message)),
		async next() {
			while (waiting.length === 0) {
				if (failed) throw failed;
				await new Promise<void>(resolve => {
					wake = resolve;
				});
			}
			return waiting.shift()!;
		},
		ended,
		close() {
			call.cancel();
			client.close();
		},
	};
}

/** A node of a VM as pilot-agent describes it; `metadata` is laid over it. */
export function vmNode({
	name = 'vm1',
	namespace,
	serviceAccount,
	address = '10.0.0.5',
	group,
	metadata = {},
}: VmNode): Message {
	return {
		id: `sidecar~${address}~${name}.${namespace}~${namespace}.svc.cluster.local`,
		cluster: `${group ?? name}.${namespace}`,
		metadata: toStruct({
			NAMESPACE: namespace,
			SERVICE_ACCOUNT: serviceAccount,
			INSTANCE_IPS: address,
			CLUSTER_ID: 'Kubernetes',
			ISTIO_VERSION: '1.31.0',
			DNS_CAPTURE: 'true',
			...(group ? {AUTO_REGISTER_GROUP: group} : {}),
			...metadata,
		}),
	};
}

export interface VmNode {
	readonly name?: string;
	readonly namespace: string;
	readonly serviceAccount: string;
	readonly address?: string;
	readonly group?: string;
	readonly metadata?: Record<string, unknown>;
}

export function toStruct(value: Record<string, unknown>): Message {
	return {fields: Object.fromEntries(Object.entries(value).map(([name, item]) => [name, toValue(item)]))};
}

function toValue(value: unknown): Message {
	if (typeof value === 'string') return {stringValue: value};
	if (typeof value === 'number') return {numberValue: value};
	if (typeof value === 'boolean') return {boolValue: value};
	if (Array.isArray(value)) return {listValue: {values: value.map(toValue)}};
	return {structValue: toStruct(value as Record<string, unknown>)};
}

/** A P-256 key and a CSR shaped like pilot-agent's: empty organization, one critical URI name. */
export function makeCsr(san = 'spiffe://cluster.local/ns/x/sa/y'): {csrPem: string; keyPem: string} {
	const {privateKey, publicKey} = generateKeyPairSync('ec', {namedCurve: 'P-256'});
	const critical = encode(tag.boolean, Buffer.from([0xff]));
	const names = encode(tag.octetString, sequence(encode(0x86, Buffer.from(san))));
	const info = sequence(
		integer(Buffer.from([0])),
		sequence(encode(tag.set, sequence(oid('2.5.4.10'), encode(tag.utf8)))),
		publicKey.export({format: 'der', type: 'spki'}),
		context(
			0,
			sequence(oid('1.2.840.113549.1.9.14'), encode(tag.set, sequence(sequence(oid('2.5.29.17'), critical, names)))),
		),
	);
	const csr = sequence(info, sequence(oid('1.2.840.10045.4.3.2')), bitString(sign('sha256', info, privateKey)));
	return {
		csrPem: toPem('CERTIFICATE REQUEST', csr),
		keyPem: privateKey.export({format: 'pem', type: 'pkcs8'}).toString(),
	};
}
