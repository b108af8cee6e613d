import type {Config, Endpoint} from '../../config/index.ts';
import {formatEndpoint} from '../../control-plane/index.ts';
import type {UpstreamStatus} from '../../relay/index.ts';
import type {Patient} from './types.ts';

/**
 * What the running agent says of its connection, where rules of capture lead ours through Envoy and it has none: Envoy takes
 * any connection, so a look from here would find somebody where nobody is.
 */
export function agentsFailure({report}: Pick<Patient, 'report'>): UpstreamStatus['lastError'] {
	const isCaptured = report?.gates.some(({name, open}) => name === 'capture' && open) === true;
	const upstream = (report?.parts['relay'] as {upstream?: UpstreamStatus} | undefined)?.upstream;
	return isCaptured && upstream?.state !== 'connected' ? upstream?.lastError : undefined;
}

/** Of configuration and CA, each once. */
export function endpointsOf({controlPlane}: Config): readonly Endpoint[] {
	const all = [...controlPlane.endpoints, ...controlPlane.caEndpoints];
	return all.filter((each, index) => all.findIndex(other => formatEndpoint(other) === formatEndpoint(each)) === index);
}
