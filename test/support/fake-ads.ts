// Both ends of the relay without a network: a control plane that answers by hand, and an Envoy that speaks by hand.
import {duplexPair} from 'node:stream';
import type {ClientDuplexStream, ServerDuplexStream} from '@grpc/grpc-js';
import type {AdsProtocol, AdsStream} from '../../src/control-plane/index.ts';
import {AgentError} from '../../src/errors.ts';
import {FieldReader, FieldWriter} from '../../src/proto/wire.ts';
import {
	buildDelta,
	buildSotw,
	type ErrorDetail,
	encodeDeltaRequest,
	encodeSotwRequest,
	parseDeltaRequest,
	parseDeltaResponse,
	parseSotwRequest,
	parseSotwResponse,
	type Request,
	type Response,
} from '../../src/relay/envelope.ts';

/** Waits for a condition; fails after five seconds with what it waited for. */
export async function until<T>(what: string, look: () => T | undefined | false): Promise<T> {
	const deadline = performance.now() + 30_000;
	for (;;) {
		const seen = look();
		if (seen !== undefined && seen !== false) return seen;
		if (performance.now() > deadline) throw new Error(`waited in vain for ${what}`);
		await new Promise(resolve => setTimeout(resolve, 2));
	}
}

/** Lets everything that is already on its way arrive, for tests that nothing came. */
export async function settle(): Promise<void> {
	for (let i = 0; i < 20; i++) await new Promise(resolve => setImmediate(resolve));
}

/** An encoded Any with a resource whose name is in field 1 and whose content is the rest. */
export function anyOf(url: string, name: string, content: string): Buffer {
	const body = new FieldWriter().string(1, name).string(99, content).finish();
	return new FieldWriter().string(1, url).bytes(2, body).finish();
}

/** The content put in by {@link anyOf}, or the cluster's own. */
export function contentOf(any: Buffer): string {
	return any.toString('latin1');
}

const nothingExpected = {anyBytes: 0, count: 0, nameBytes: 0};

/** An answer as Envoy sees it. */
export interface EnvoyResponse extends Omit<Response, 'resources'> {
	readonly resources: readonly {readonly name: string; readonly any: Buffer; readonly version: string}[];
}

function readResponse(protocol: AdsProtocol, message: Buffer): EnvoyResponse {
	const {resources, ...rest} = protocol === 'delta' ? parseDeltaResponse(message) : parseSotwResponse(message);
	const versions = protocol === 'delta' ? readVersions(message) : [];
	return {
		...rest,
		resources: resources.names.map((name, index) => ({
			name,
			any: resources.any(index),
			version: versions[index] ?? '',
		})),
	};
}

/** DeltaDiscoveryResponse: resources 2 {version 1}. The relay itself has no use for them. */
function readVersions(message: Buffer): string[] {
	const versions: string[] = [];
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number !== 2) continue;
		let version = '';
		for (const resource = field.message(); resource.next(); ) if (resource.number === 1) version = resource.string();
		versions.push(version);
	}
	return versions;
}

/** One stream the relay has opened to us. */
export class FakeUpstreamStream {
	readonly requests: Request[] = [];
	readonly protocol: AdsProtocol;
	readonly stream: AdsStream;
	readonly #side;
	#nonce = 0;
	isEnded = false;

	constructor(protocol: AdsProtocol, endpoint: string) {
		this.protocol = protocol;
		const [ours, theirs] = duplexPair({objectMode: true});
		this.#side = ours;
		ours.on('data', (message: Buffer) =>
			this.requests.push(protocol === 'delta' ? parseDeltaRequest(message) : parseSotwRequest(message)),
		);
		ours.on('end', () => {
			this.isEnded = true;
			ours.end();
		});
		this.stream = {
			call: theirs as unknown as ClientDuplexStream<Buffer, Buffer>,
			endpoint,
			explain: error =>
				error instanceof AgentError ? error : new AgentError('control_plane.unreachable', String(error)),
			close: () => theirs.destroy(),
		};
	}

	/** Answers with resources `[name, any]`; returns the nonce. */
	send(url: string, resources: readonly (readonly [string, Buffer])[], removed: readonly string[] = []): string {
		const nonce = `up-${++this.#nonce}`;
		if (this.protocol === 'delta') {
			const response = buildDelta(nothingExpected);
			for (const [name, any] of resources) response.add(name, '', any);
			this.#side.write(response.finish(url, nonce, removed));
		} else {
			const response = buildSotw(nothingExpected);
			for (const [name, any] of resources) response.add(name, '', any);
			this.#side.write(response.finish(url, nonce, []));
		}
		return nonce;
	}

	fail(error: AgentError): void {
		this.stream.call.destroy(error);
	}

	of(url: string): Request[] {
		return this.requests.filter(({typeUrl}) => typeUrl === url);
	}

	/** The answer to our nonce, once it has come. */
	answerTo(nonce: string): Promise<Request> {
		return until(`an answer to ${nonce}`, () => this.requests.find(request => request.nonce === nonce));
	}
}

/** Plays the control plane: collects streams, refuses when told to. */
export class FakeUpstream {
	readonly streams: FakeUpstreamStream[] = [];
	refuse: ((protocol: AdsProtocol) => AgentError | undefined) | undefined;

	readonly open = async (protocol: AdsProtocol): Promise<AdsStream> => {
		const refusal = this.refuse?.(protocol);
		if (refusal) throw refusal;
		const stream = new FakeUpstreamStream(protocol, `fake-${this.streams.length + 1}`);
		this.streams.push(stream);
		return stream.stream;
	};

	stream(number: number): Promise<FakeUpstreamStream> {
		return until(`stream ${number}`, () => this.streams[number - 1]);
	}
}

/** Plays an Envoy on one ADS stream. */
export class FakeEnvoy {
	readonly responses: EnvoyResponse[] = [];
	/** What the relay serves. */
	readonly call: ServerDuplexStream<Buffer, Buffer>;
	readonly #side;
	readonly #protocol: AdsProtocol;
	#isNodeSent = false;

	constructor(protocol: AdsProtocol = 'delta') {
		this.#protocol = protocol;
		const [ours, theirs] = duplexPair({objectMode: true});
		this.#side = ours;
		this.call = theirs as unknown as ServerDuplexStream<Buffer, Buffer>;
		ours.on('data', (message: Buffer) => this.responses.push(readResponse(protocol, message)));
	}

	ask(url: string, names: readonly string[] = [], held: Readonly<Record<string, string>> = {}): void {
		const node = this.#isNodeSent ? undefined : Buffer.from([]);
		this.#isNodeSent = true;
		if (this.#protocol === 'sotw') {
			this.#side.write(encodeSotwRequest({node, typeUrl: url, names}));
			return;
		}
		const pairs = Object.entries(held).map(([name, version]) =>
			new FieldWriter().string(1, name).string(2, version).finish(),
		);
		const base = encodeDeltaRequest({node, typeUrl: url, subscribe: names});
		this.#side.write(Buffer.concat([base, ...pairs.map(pair => new FieldWriter().bytes(5, pair).finish())]));
	}

	forget(url: string, names: readonly string[]): void {
		this.#side.write(encodeDeltaRequest({typeUrl: url, unsubscribe: names}));
	}

	answer(
		{typeUrl, nonce, version}: Pick<Response, 'typeUrl' | 'nonce' | 'version'>,
		error?: ErrorDetail,
		names: readonly string[] = [],
	): void {
		this.#side.write(
			this.#protocol === 'delta'
				? encodeDeltaRequest({typeUrl, nonce, error})
				: encodeSotwRequest({typeUrl, nonce, version, names, error}),
		);
	}

	of(url: string): EnvoyResponse[] {
		return this.responses.filter(({typeUrl}) => typeUrl === url);
	}

	response(url: string, number: number): Promise<EnvoyResponse> {
		return until(`response ${number} of ${url}`, () => this.of(url)[number - 1]);
	}

	leave(): void {
		this.#side.end();
	}
}
